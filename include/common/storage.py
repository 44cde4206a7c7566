"""Where DAGs leave files: on the object storage of the environment variable GENAI_STORAGE.

The default is a folder of the project; in production it is a bucket (`s3://bucket/prefix`), which every worker
sees. It is never created: a misspelt name is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

DEFAULT_FOLDER = Path(__file__).parents[1] / ".data" / "artifacts"


def storage_path(*parts: str) -> ObjectStoragePath:
    """Return the path `<storage>/<part>/<part>...`, for what is not one run's own.

    :raises ValueError: GENAI_STORAGE has characters that make a bucket's prefix a pattern.
    """
    root = os.environ.get("GENAI_STORAGE") or str(DEFAULT_FOLDER)
    if "://" not in root:
        return open_path(f"file://{Path(root).absolute()}").joinpath(*parts)  # not Path.as_uri(), which escapes
    if not root.startswith("file:") and any(sign in root for sign in "*?["):
        raise ValueError(f"GENAI_STORAGE={root!r}: a bucket's prefix cannot have *, ? or [, which stand for others.")
    return open_path(root).joinpath(*parts)


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


def open_path(url: str) -> ObjectStoragePath:
    """Return the path at `url`, with its file system.

    A bucket on S3 is opened by the connection in its URL (`s3://my_conn@bucket`), else by `aws_default`, and where
    there is no such connection by the environment or the role of the worker.

    Amazon's provider runs an event loop to open a bucket, which fails within another one: so a thread opens it. All
    else that is done with a path works within a loop.
    """
    url = re.sub("^s3://(?=[^/@]*(/|$))", "s3://aws_default@", url)

    def opened() -> ObjectStoragePath:
        import fsspec
        from airflow.sdk import ObjectStoragePath

        # No listing is remembered: other workers write, too, and on Airflow 3.3 a path may have two file systems.
        fsspec.config.conf.setdefault(url.partition(":")[0], {})["use_listings_cache"] = False
        path = ObjectStoragePath(url)
        if hasattr(path.fs, "dircache"):  # of a file system that was open before, as for a large XCom
            path.fs.dircache.use_listings_cache = False
            path.fs.dircache.clear()
        if hasattr(path.fs, "max_concurrency"):
            path.fs.max_concurrency = 1  # S3's looks at a file's size first, to read it in parts at once
        return path

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(opened).result()


def read_artifact(path: ObjectStoragePath) -> bytes:
    """Read `path` whole, which is one request, also where there is no such file.

    :raises FileNotFoundError: there is none.
    """
    with errors_with_name(path):
        return bytes(path.fs.cat_file(path.path))


def write_artifact(path: ObjectStoragePath, content: str | bytes) -> str:
    """Write `path` whole or not at all, over what an earlier try left, and return its URL.

    Text becomes UTF-8; half characters, which that does not have, become `\\udXXX`, which is how JSON writes them.
    """
    content = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    if path.protocol == "file":
        path.parent.mkdir(parents=True, exist_ok=True)  # a bucket has no folders, and would be created itself
        part = Path(f"{path.path}.{uuid4().hex}.part")  # in the same folder, as only within a disk a move is one step
        try:
            part.write_bytes(content)
            part.replace(path.path)
        finally:
            part.unlink(missing_ok=True)
    else:
        with errors_with_name(path):
            path.fs.pipe_file(path.path, content)  # one request
    return str(path)


@contextmanager
def errors_with_name(path: ObjectStoragePath) -> Iterator[None]:
    """Let errors say which file and bucket they are about, which those of object storages do not."""
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise type(error)(f"{path}: {error}. Look at GENAI_STORAGE, and at the rights on it.") from error
