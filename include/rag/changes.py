"""What changed in the knowledge base since its asset was last updated."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypedDict

from include.common.storage import storage_path, write_artifact

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath


class Changes(TypedDict):
    """Names of documents; `documents` is the state after the change, as checksum by name."""

    added: list[str]
    changed: list[str]
    removed: list[str]
    documents: dict[str, str]


def changes_since_last_update(now: dict[str, str]) -> Changes:
    """Compare the documents of the index with what `remember` was last given. At first, all of them are new.

    :param now: the checksum of each document by name, as `indexed_documents` returns them.
    """
    before: dict[str, str] = json.loads(_published().read_bytes()) if _published().exists() else {}
    return {
        "added": sorted(now.keys() - before.keys()),
        "changed": sorted(name for name in now.keys() & before.keys() if now[name] != before[name]),
        "removed": sorted(before.keys() - now.keys()),
        "documents": now,
    }


def remember(changes: Changes) -> None:
    """From now on, changes are counted from this state. To be called once the asset's update is in the database."""
    write_artifact(_published(), json.dumps(changes["documents"]))


def _published() -> ObjectStoragePath:
    return storage_path("knowledge_base", "published.json")
