"""The files that a run left on the storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from include.common.storage import artifact_path, name_on_storage

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

MOST_FILES = 100


def files_of(dag_id: str, run_id: str) -> dict[str, ObjectStoragePath]:
    """Return the first MOST_FILES files of a run, by their names below its folder; none if it left none.

    :raises OSError: the storage cannot be read.
    """
    folder = artifact_path(name_on_storage(dag_id), run_id, "")
    try:
        found = folder.fs.find(folder.path)
    except FileNotFoundError:
        return {}
    top = folder.path.rstrip("/") + "/"
    names = [path.removeprefix(top) for path in found if path.startswith(top) and not path.endswith(".part")]
    return {name: folder / name for name in sorted(names)[:MOST_FILES]}
