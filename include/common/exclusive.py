"""Files on the project's storage that only one of several processes can create."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath


def create_file(path: ObjectStoragePath, content: bytes) -> bool:
    """Create a file, completely or not at all; return False if it exists.

    :raises OSError: it cannot be written.
    """
    try:
        if path.protocol == "file":
            _link_new(Path(path.path), content)
        else:
            path.fs.pipe_file(path.path, content, mode="create")
    except OSError:  # not every storage raises FileExistsError
        if path.exists():
            return False
        raise
    return True


def names_in(folder: ObjectStoragePath) -> list[str]:
    """Return the names of the files in a folder; none if there is no such folder."""
    try:
        return [path.rsplit("/", 1)[-1] for path in folder.fs.ls(folder.path, detail=False)]
    except FileNotFoundError:
        return []


def _link_new(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{uuid4().hex}.part")
    try:
        part.write_bytes(content)
        os.link(part, path)
    finally:
        part.unlink(missing_ok=True)
