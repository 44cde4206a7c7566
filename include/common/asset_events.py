"""The asset events that a run handles."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, get_current_context

from include.common.stored_files import stored_file

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

log = logging.getLogger(__name__)


def triggering_events(*assets: Asset) -> list[Any]:
    """Return the events of these assets that started this run, oldest first; none if it was started by hand or by time.

    All updates before the start of the run are included.
    """
    found = get_current_context()["triggering_asset_events"]
    events = [event for asset in assets if asset in found for event in found[asset]]
    return sorted(events, key=lambda event: event.timestamp)


def newest_event(asset: Asset) -> list[Any]:
    """Return the asset's newest event, if any, for runs that no event started. The task needs the asset as an inlet."""
    return sorted(get_current_context()["inlet_events"][asset], key=lambda event: event.timestamp)[-1:]


def files_of(events: Sequence[Any], key: str = "file") -> list[ObjectStoragePath]:
    """Return the files that these events name in `extra[key]`.

    Anyone with access to the REST API can create an event. One that names no file, or a file that is not on this
    project's storage, is skipped with an error in the log, so that it does not block the others.
    """
    files = []
    for event in events:
        try:
            files.append(stored_file(str(event.extra.get(key, ""))))
        except ValueError as error:
            log.error("The event of %s at %s is skipped: extra[%r] %s", event.asset.name, event.timestamp, key, error)
    return files
