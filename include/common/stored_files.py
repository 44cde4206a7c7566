"""Files on the project's storage (see `include.common.storage`) that exist already, or are written piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING
from uuid import uuid4

from airflow.providers.common.compat.sdk import AirflowFailException

from include.common.storage import errors_with_name, open_path, storage_path

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath


DELETED_AT_ONCE = 16


class NotOnStorage(AirflowFailException, ValueError):
    """A URL points outside the project's storage."""


def stored_file(url: str) -> ObjectStoragePath:
    """Return the artifact at `url`, for URLs that come from outside, as in an asset event.

    :raises NotOnStorage: the URL is not below the storage of this project.
    """
    root = storage_path()
    # As this project writes it, and without the connection, as the storage's own tools show it.
    for prefix in (f"{root}/", f"{root.protocol}://{root.path}/"):
        if url.startswith(prefix) and ".." not in url.split("/"):
            return open_path(f"{root}/{url.removeprefix(prefix)}")
    raise NotOnStorage(f"{url!r} is not a file on this project's storage, {root}.")


def input_file(url: str | None, default: Path | None = None) -> ObjectStoragePath:
    """Return the file at this URL of the project's storage, or the project's own file `default` if there is no URL.

    :raises AirflowFailException: the URL points elsewhere, or there is no such file.
    """
    path = local_file(default) if default and not url else stored_file(url or "")
    if not path.is_file():
        raise AirflowFailException(f"There is no file {path}.")
    return path


def local_file(path: Path) -> ObjectStoragePath:
    """Return a file of this project, to be read like one on its storage."""
    return open_path(f"file://{path}")  # not Path.as_uri(), which escapes: fsspec does not decode a URL


def delete_files(folder: ObjectStoragePath, paths: Sequence[str]) -> int:
    """Delete exactly these files below the folder, and return how many there were.

    Not with `fs.rm(paths)`: it treats a name with a bracket or star as a pattern, and does not raise if S3 refuses.

    :param paths: in the form that the folder's file system lists.
    :raises OSError: one of them cannot be deleted; others may be deleted.
    """

    def delete(path: str) -> bool:
        try:
            folder.fs.rm_file(path)
        except FileNotFoundError:  # another process has deleted it
            return False
        return True

    with errors_with_name(folder), ThreadPoolExecutor(DELETED_AT_ONCE) as threads:
        return sum(threads.map(delete, paths))


@contextmanager
def new_artifact(path: ObjectStoragePath) -> Iterator[IO[bytes]]:
    """Yield a file to write, which replaces `path` when the block ends without an error, and leaves no trace otherwise.

    Threads may write at the same time (an fsspec transaction is shared by all threads).
    """
    if path.protocol == "file":
        path.parent.mkdir(parents=True, exist_ok=True)  # not for a bucket: this would create the bucket itself
        part = Path(f"{path.path}.{uuid4().hex}.part")  # in the same folder: a move is atomic only within a disk
        try:
            with part.open("wb") as file:
                yield file
            part.replace(path.path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    else:
        remote = path.fs.open(path.path, "wb")  # on S3 one request, up to 50 MB; nothing is visible until it closes
        try:
            yield remote
            with errors_with_name(path):
                remote.close()
        except BaseException:
            with suppress(AttributeError):
                remote.closed = True  # else garbage collection would write it
            remote.discard()
            raise
