"""Delete stored answers: those of a DAG, a run, a key, or older than some days: see `include.ai.reuse`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.ai.attempt import FOLDER, RUNS, SHARED
from include.common.storage import name_on_storage, storage_path
from include.common.stored_files import delete_files

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

LONGEST_DAYS = 36_500  # a date has its limits
# Storages' names for the time of a file.
TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")


def forget(
    *, dag_id: str | None = None, run_id: str | None = None, key: str | None = None, days: float | None = None
) -> int:
    """Delete the answers, and the notes of effects, that match all arguments; return how many.

    An affected task that is between two tries pays again, and runs its effects again.

    :param dag_id: the DAG that paid for them.
    :param run_id: its run.
    :param key: the beginning of the file's name, such as the `file` in `reused_from`.
    :param days: their minimum age.
    :raises ValueError: there is no argument, or the number of days is not valid.
    :raises OSError: the storage cannot be read or written.
    """
    if dag_id is None and run_id is None and key is None and days is None:
        raise ValueError("Say which answers: a DAG, a run, a key, or how many days old.")
    if days is not None and not 0 <= days <= LONGEST_DAYS:
        raise ValueError(f"days={days!r}: it must be a number from 0 to {LONGEST_DAYS}.")
    before = None if days is None else datetime.now(UTC) - timedelta(days=days)
    count = 0
    for folder, of_dag in _folders():
        if of_dag is not None and dag_id is not None and of_dag != name_on_storage(dag_id):
            continue
        files = folder.fs.find(folder.path, detail=True)
        chosen = [
            path
            for path, info in files.items()
            if (before is None or _time(info) < before)
            and (key is None or path.rsplit("/", 1)[-1].startswith(key))
            and (of_dag is None or run_id is None or _run_of(folder, path) == name_on_storage(run_id))
            and (of_dag is not None or _is_paid_by(folder, path, dag_id, run_id))
        ]
        count += delete_files(folder, chosen)
        if chosen:
            _remove_empty(folder)
    return count


def _folders() -> Iterator[tuple[ObjectStoragePath, str | None]]:
    """Yield the folder of each DAG, with its name, and the folders of shared answers, with None."""
    root = storage_path(FOLDER)
    for kind in (RUNS, SHARED):
        if (root / kind).exists():
            for path in root.fs.ls((root / kind).path, detail=False):
                name = path.rstrip("/").rsplit("/", 1)[-1]
                yield root / kind / name, name if kind == RUNS else None


def _run_of(folder: ObjectStoragePath, path: str) -> str:
    return path.removeprefix(folder.path).strip("/").split("/")[0]


def _is_paid_by(folder: ObjectStoragePath, path: str, dag_id: str | None, run_id: str | None) -> bool:
    """Return whether this DAG and run paid for a shared answer; also True for one that cannot be read."""
    if dag_id is None and run_id is None:
        return True
    try:
        paid_by = json.loads(folder.fs.cat_file(path))["asked_by"]
        return dag_id in (None, paid_by["dag_id"]) and run_id in (None, paid_by["run_id"])
    except FileNotFoundError:  # another process has deleted it
        return False
    except (ValueError, KeyError, TypeError):
        return True


def _time(info: dict[str, Any]) -> datetime:
    time = next(info[name] for name in TIMES if info.get(name) is not None)
    if isinstance(time, int | float):
        return datetime.fromtimestamp(time, UTC)
    found = datetime.fromisoformat(str(time))
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _remove_empty(folder: ObjectStoragePath) -> None:
    """Remove empty folders, which exist only on a disk."""
    if folder.protocol == "file":
        for parent, folders, _ in os.walk(folder.path, topdown=False):  # skips what another process has removed
            for name in folders:
                with suppress(OSError):  # it is not empty
                    Path(parent, name).rmdir()
