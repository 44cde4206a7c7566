"""Files that DAGs leave behind: on the object storage of the environment variable GENAI_STORAGE.

The default is a folder of the project; in production it is a bucket (`s3://bucket/prefix`), which every worker
sees.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote
from uuid import uuid4

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

DEFAULT_FOLDER = Path(__file__).parent / ".data" / "artifacts"


def storage_path(*parts: str) -> ObjectStoragePath:
    """The path `<storage>/<part>/<part>...`, for what is not one run's own."""
    from airflow.sdk import ObjectStoragePath

    root = os.environ.get("GENAI_STORAGE") or DEFAULT_FOLDER.as_uri()
    return ObjectStoragePath(root).joinpath(*parts)


def artifact_path(folder: str, run_id: str, name: str) -> ObjectStoragePath:
    """Where a run keeps the artifact `name`: `<storage>/<folder>/<run id>/<name>`."""
    return storage_path(folder, name_on_storage(run_id), name)


def name_on_storage(text: str) -> str:
    """Text from outside, such as a run id, as the name of one file or folder.

    Another text has another name. It never leads to another folder, and leaves room for an ending in the 255 bytes
    that a name may have.
    """
    if not text.strip("."):
        return f"={len(text)}"  # `quote` leaves dots, and never writes "="
    name = quote(text, safe="")
    return name if len(name) <= 160 else f"{name[:95]}={sha256(text.encode()).hexdigest()}"


def stored_file(url: str) -> ObjectStoragePath:
    """The artifact at `url`, for URLs that come from outside, as in an asset event.

    :raises ValueError: the URL is not below the storage of this project.
    """
    from airflow.sdk import ObjectStoragePath

    if not url.startswith(f"{storage_path()}/") or ".." in url.split("/"):
        raise ValueError(f"{url!r} is not a file on this project's storage, {storage_path()}.")
    return ObjectStoragePath(url)


@contextmanager
def new_artifact(path: ObjectStoragePath) -> Iterator[IO[bytes]]:
    """A file to write, which replaces `path` when the block ends without an error, and leaves no trace otherwise.

    Threads may write at the same time (an fsspec transaction is one for all threads).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.protocol == "file":
        part = Path(f"{path.path}.{uuid4().hex}.part")  # in the same folder, as only within a disk a move is one step
        try:
            with part.open("wb") as file:
                yield file
            part.replace(path.path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    else:
        remote = path.fs.open(path.path, "wb", autocommit=False)
        try:
            with remote:
                yield remote
            remote.commit()
        except BaseException:
            remote.discard()
            raise


def write_artifact(path: ObjectStoragePath, content: str | bytes) -> str:
    """Write `path` whole or not at all, over what an earlier try left, and return its URL."""
    with new_artifact(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return str(path)
