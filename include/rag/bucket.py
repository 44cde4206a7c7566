"""A knowledge base in a bucket, for workers that share no disk.

The version of a document is what the object storage reports for it, such as its ETag: listing a thousand documents is
one request, and only new and changed ones are fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import AirflowException

from include.common.storage import open_path
from include.rag.bounded import UnreadableDocument

# What changes with an object's content, as the object storages call it: a hash, or else a time.
VERSION_FIELDS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "created")


class Bucket:
    """The objects below a URL, such as s3://your-bucket/handbook, by their names below it.

    :raises ValueError: the URL holds a password.
    """

    def __init__(self, url: str) -> None:
        if urlsplit(url).password is not None:
            raise ValueError(
                "GENAI_KNOWLEDGE_BASE holds a password: put it into a connection, s3://aws_default@bucket."
            )
        self._path = open_path(url)

    def __str__(self) -> str:
        return str(self._path)

    def versions(self) -> dict[str, str]:
        """Return the version of every object, by name.

        :raises AirflowException: the bucket does not exist, or does not answer.
        """
        folder = self._file("")
        try:
            found = self._path.fs.find(folder.rstrip("/"), detail=True)
        except Exception as error:  # each object storage raises its own
            raise AirflowException(f"{self} cannot be listed: {error}") from error
        return {path.removeprefix(folder): _version(info) for path, info in found.items() if not path.endswith("/")}

    def read(self, name: str, most: int) -> tuple[str, bytes]:
        """Return the version and the content of an object, at most `most` bytes of it.

        On storage that cannot read a given version, the content may be newer than the version. The next listing then
        has another version, and the document is read again.

        :raises FileNotFoundError: there is no such object.
        :raises UnreadableDocument: access to it is denied.
        :raises AirflowException: the bucket does not answer, or the object changed during the read. A retry may help.
        """
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise FileNotFoundError(name)
        fs, path = self._path.fs, self._file(name)
        try:
            with fs.open(path, "rb") as file:
                return _version(getattr(file, "details", None) or fs.info(path)), file.read(most)
        except FileNotFoundError:
            raise FileNotFoundError(name) from None
        except PermissionError as error:
            raise UnreadableDocument(f"{name} cannot be read: {error}") from error
        except Exception as error:  # each object storage raises its own
            raise AirflowException(f"{name} cannot be read from {self}: {error}") from error

    def _file(self, name: str) -> str:
        return f"{self._path.path.rstrip('/')}/{name}"


def _version(info: Mapping[str, Any]) -> str:
    mark = next((info[key] for key in VERSION_FIELDS if info.get(key)), "")
    return f"{info['size']}-{mark.timestamp() if isinstance(mark, datetime) else mark}"
