"""Updates of the asset `knowledge_base`: what has changed in the index since the last update."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, TypedDict

from include.common.storage import read_artifact, storage_path, write_artifact

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath


class Update(TypedDict):
    """Names of documents; `documents` is the state after the update, as checksum by name."""

    added: list[str]
    changed: list[str]
    removed: list[str]
    documents: dict[str, str]


def update_of(documents: dict[str, str]) -> Update:
    """Compare these documents with those of the last remembered update. If there is none, all of them are new.

    :param documents: the checksum of each document by name, as `indexed_documents` returns them.
    """
    before: dict[str, str] = {}
    with suppress(FileNotFoundError):
        before = json.loads(read_artifact(_remembered()))
    return {
        "added": sorted(documents.keys() - before.keys()),
        "changed": sorted(name for name in documents.keys() & before.keys() if documents[name] != before[name]),
        "removed": sorted(before.keys() - documents.keys()),
        "documents": documents,
    }


def remember_update(update: Update) -> None:
    """Make this the update that the next one is compared with. Call it once the asset's event is in the database."""
    write_artifact(_remembered(), json.dumps(update["documents"]))


def _remembered() -> ObjectStoragePath:
    return storage_path("knowledge_base", "published.json")
