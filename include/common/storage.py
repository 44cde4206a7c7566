"""Files that DAGs leave behind: on the object storage of the environment variable GENAI_STORAGE.

The default is a folder of the project; in production it is a bucket (`s3://bucket/prefix`), which every worker
sees.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING
from uuid import uuid4

from airflow.providers.common.compat.sdk import AirflowFailException

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

DEFAULT_FOLDER = Path(__file__).parents[1] / ".data" / "artifacts"


class NotOnStorage(AirflowFailException, ValueError):
    """A URL leads out of the project's storage."""


def storage_path(*parts: str) -> ObjectStoragePath:
    """Return the path `<storage>/<part>/<part>...`, for what is not one run's own.

    :raises ValueError: GENAI_STORAGE has characters that make a bucket's prefix a pattern.
    """
    root = os.environ.get("GENAI_STORAGE") or str(DEFAULT_FOLDER)
    if "://" not in root:
        return local_file(Path(root).absolute()).joinpath(*parts)
    if not root.startswith("file:") and any(sign in root for sign in "*?["):
        raise ValueError(f"GENAI_STORAGE={root!r}: a bucket's prefix cannot have *, ? or [, which stand for others.")
    return _open(root).joinpath(*parts)


def artifact_path(folder: str, run_id: str, name: str) -> ObjectStoragePath:
    """Return where a run keeps the artifact `name`: `<storage>/<folder>/<run id>/<name>`."""
    return storage_path(folder, name_on_storage(run_id), name)


def name_on_storage(text: str) -> str:
    """Return text from outside, such as a run id, as the name of one file or folder.

    Another text has another name. A name never leads to another folder, stands in a URL as it is, and has at most 160
    characters, which leaves room for an ending.
    """
    if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,159}", text):
        return text
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:100].lstrip(".")
    return f"{readable}~{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"  # no text above has "~"


def stored_file(url: str) -> ObjectStoragePath:
    """Return the artifact at `url`, for URLs that come from outside, as in an asset event.

    :raises NotOnStorage: the URL is not below the storage of this project.
    """
    root = storage_path()
    # As this project writes it, and without the connection, as the storage's own tools show it.
    for prefix in (f"{root}/", f"{root.protocol}://{root.path}/"):
        if url.startswith(prefix) and ".." not in url.split("/"):
            return _open(f"{root}/{url.removeprefix(prefix)}")
    raise NotOnStorage(f"{url!r} is not a file on this project's storage, {root}.")


def input_file(url: str | None, default: Path | None = None) -> ObjectStoragePath:
    """Return the file at this URL of the project's storage, or the project's own file `default` if there is no URL.

    :raises AirflowFailException: the URL is of somewhere else, or nothing is there.
    """
    path = local_file(default) if default and not url else stored_file(url or "")
    if not path.is_file():
        raise AirflowFailException(f"There is no file {path}.")
    return path


def local_file(path: Path) -> ObjectStoragePath:
    """Return a file of this project, to be read like one on its storage."""
    return _open(f"file://{path}")  # not Path.as_uri(), which escapes: fsspec takes a URL as it stands


def _open(url: str) -> ObjectStoragePath:
    """Return the path at `url`, with its file system.

    Amazon's provider runs an event loop to open a bucket, which fails within another one: so a thread opens it. All
    else that is done with a path works within a loop.
    """

    def opened() -> ObjectStoragePath:
        import fsspec
        from airflow.sdk import ObjectStoragePath

        # No listing is remembered: other workers write, too, and on Airflow 3.3 a path may have two file systems.
        fsspec.config.conf.setdefault(url.partition(":")[0], {})["use_listings_cache"] = False
        path = ObjectStoragePath(url)
        path.fs  # noqa: B018
        return path

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(opened).result()


@contextmanager
def new_artifact(path: ObjectStoragePath) -> Iterator[IO[bytes]]:
    """Yield a file to write, which replaces `path` when the block ends without an error, and leaves no trace otherwise.

    Threads may write at the same time (an fsspec transaction is one for all threads).
    """
    if path.protocol == "file":
        path.parent.mkdir(parents=True, exist_ok=True)  # a bucket has no folders, and would be created itself
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
    """Write `path` whole or not at all, over what an earlier try left, and return its URL.

    Text becomes UTF-8; half characters, which that does not have, become `\\udXXX`, which is how JSON writes them.
    """
    content = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    if path.protocol == "file":
        with new_artifact(path) as file:
            file.write(content)
    else:
        path.fs.pipe_file(path.path, content)  # one request
    return str(path)
