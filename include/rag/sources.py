"""Bring documents from elsewhere (a bucket, SharePoint, Confluence, ...) into the folder of the knowledge base.

A source is one function without arguments that yields the name and the bytes of every current document.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from uuid import uuid4

PART = ".part"
OLD_PART_SECONDS = 3600  # a part exists only while a file is written, unless its process was killed

log = logging.getLogger(__name__)


def mirror(documents: Iterable[tuple[str, bytes]], folder: Path) -> dict[str, int]:
    """Make the folder hold these documents and no others, and return how many were `written`, `kept` and `removed`.

    Each file is replaced whole. Nothing is removed unless the source ends without an error.

    :param documents: name (a path with `/`, below the folder) and content of each.
    :raises ValueError: a name leads out of the folder, or the source has no document at all.
    """
    counts = {"written": 0, "kept": 0, "removed": 0}
    named: set[Path] = set()
    for name, content in documents:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
            raise ValueError(f"The source names a document {name!r}, which is not a path below the knowledge base.")
        path = folder.joinpath(*parts)
        named.add(path)
        if path.is_file() and path.read_bytes() == content:
            counts["kept"] += 1
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{uuid4().hex}{PART}")  # hidden files are not documents
        try:
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        counts["written"] += 1
    if not named:
        raise ValueError("The source has no documents: nothing is removed from the knowledge base.")
    for path in folder.rglob("*"):
        if path.is_file() and path not in named and not path.name.startswith("."):
            path.unlink()
            counts["removed"] += 1
    for path in folder.rglob(f".*{PART}"):
        with suppress(FileNotFoundError):  # another worker has just finished it
            if path.stat().st_mtime < time.time() - OLD_PART_SECONDS:
                path.unlink()
    log.info("%(written)d documents written, %(kept)d unchanged, %(removed)d removed.", counts)
    return counts
