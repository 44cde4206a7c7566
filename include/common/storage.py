"""Where DAGs leave files: on the object storage that the environment variable GENAI_STORAGE names.

The default is a folder of the project; in production it is a bucket (`s3://bucket/prefix`), which every worker
sees. The bucket is never created: a misspelt name is an error.
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
    """Return the path `<storage>/<part>/<part>...`, for files that do not belong to one run.

    :raises ValueError: GENAI_STORAGE has characters that make a bucket's prefix a pattern.
    """
    root = os.environ.get("GENAI_STORAGE") or str(DEFAULT_FOLDER)
    if "://" not in root:
        return open_path(f"file://{Path(root).absolute()}").joinpath(*parts)  # not Path.as_uri(), which escapes
    if not root.startswith("file:") and any(sign in root for sign in "*?["):
        raise ValueError(f"GENAI_STORAGE={root!r}: a bucket's prefix cannot have *, ? or [, which are wildcards.")
    return open_path(root).joinpath(*parts)


def artifact_path(folder: str, run_id: str, name: str) -> ObjectStoragePath:
    """Return where a run keeps the artifact `name`: `<storage>/<folder>/<run id>/<name>`."""
    return storage_path(folder, name_on_storage(run_id), name)


def name_on_storage(text: str) -> str:
    """Return text from outside, such as a run id, as the name of one file or folder.

    Different texts have different names. A name never leads to another folder, needs no escaping in a URL, and has at
    most 160 characters, which leaves room for a suffix.
    """
    if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,159}", text):
        return text
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:100].lstrip(".")
    return f"{readable}~{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"  # no text above has "~"


def open_path(url: str) -> ObjectStoragePath:
    """Return the path at `url`, with its file system.

    A bucket on S3 is opened with the connection in its URL (`s3://my_conn@bucket`), else with `aws_default`, and
    without such a connection with the environment or the role of the worker.

    Amazon's provider runs an event loop to open a bucket, which fails inside another one, so a thread opens it. All
    other operations on a path work inside a loop.
    """
    url = re.sub("^s3://(?=[^/@]*(/|$))", "s3://aws_default@", url)

    def opened() -> ObjectStoragePath:
        import fsspec
        from airflow.sdk import ObjectStoragePath

        # Listings are not cached: other workers write, too, and on Airflow 3.3 a path may have two file systems.
        fsspec.config.conf.setdefault(url.partition(":")[0], {})["use_listings_cache"] = False
        path = ObjectStoragePath(url)
        if hasattr(path.fs, "dircache"):  # of a file system that is open already, as for a large XCom
            path.fs.dircache.use_listings_cache = False
            path.fs.dircache.clear()
        if hasattr(path.fs, "max_concurrency"):
            path.fs.max_concurrency = 1  # else S3's asks for a file's size first, to read it in parts
        return path

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(opened).result()


def read_artifact(path: ObjectStoragePath) -> bytes:
    """Read all of `path` in one request, also if there is no such file.

    :raises FileNotFoundError: there is no such file.
    """
    with errors_with_name(path):
        return bytes(path.fs.cat_file(path.path))


def write_artifact(path: ObjectStoragePath, content: str | bytes) -> str:
    """Write `path` completely or not at all, replacing what an earlier try left, and return its URL.

    Text is encoded in UTF-8; lone surrogates, which UTF-8 cannot encode, become `\\udXXX`, as in JSON.
    """
    content = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    if path.protocol == "file":
        path.parent.mkdir(parents=True, exist_ok=True)  # not for a bucket: this would create the bucket itself
        part = Path(f"{path.path}.{uuid4().hex}.part")  # in the same folder: a move is atomic only within a disk
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
    """Add the file and bucket to errors, as those of object storages do not name them."""
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise type(error)(f"{path}: {error}. Check GENAI_STORAGE and the permissions on it.") from error
