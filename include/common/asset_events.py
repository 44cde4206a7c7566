"""The asset events that a run is about."""

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
    """All events of these assets that made this run start, oldest first; none if it was started by hand or by time.

    Several updates can come before a run starts: they are all here.
    """
    found = get_current_context()["triggering_asset_events"]
    events = [event for asset in assets if asset in found for event in found[asset]]
    return sorted(events, key=lambda event: event.timestamp)


def newest_event(asset: Asset) -> list[Any]:
    """The asset's newest event, if it has one, for runs that no event has started. The task needs it as an inlet."""
    return sorted(get_current_context()["inlet_events"][asset], key=lambda event: event.timestamp)[-1:]


def files_of(events: Sequence[Any], key: str = "file") -> list[ObjectStoragePath]:
    """The files that these events name in `extra[key]`.

    Anybody who may call the REST API can create an event. One that names no file, or a file that is not on this
    project's storage, is left out with an error in the log, so that it does not keep the others from being read.
    """
    files = []
    for event in events:
        try:
            files.append(stored_file(str(event.extra.get(key, ""))))
        except ValueError as error:
            log.error("The event of %s at %s is left out: extra[%r] %s", event.asset.name, event.timestamp, key, error)
    return files
