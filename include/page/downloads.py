"""Send a file of a run, whole or in the range that the browser asks for, a part at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fastapi import HTTPException
from fastapi.responses import Response, StreamingResponse

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

BYTES_AT_ONCE = 1 << 20


def send_file(
    path: ObjectStoragePath, media_type: str, headers: dict[str, str], request: Mapping[str, str]
) -> Response:
    """Send a file.

    :param request: the request's headers. `Range` with anything but one range of bytes means the whole file, as does a
        file that is no longer the one of `If-Range`.
    :raises HTTPException: the range is not in the file.
    """
    size, version = path.stat().st_size, f'"{path.ukey()}"'
    wanted = request.get("range", "") if request.get("if-range", version) == version else ""
    first, last = _range(wanted, size)
    headers |= {
        "Accept-Ranges": "bytes",
        "Content-Encoding": "identity",  # else Airflow compresses the range, which is then not that of the file
        "Content-Length": str(last - first + 1),
        "ETag": version,
    }
    is_part = (first, last) != (0, size - 1)
    if is_part:
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"

    def content() -> Iterator[bytes]:
        left = last - first + 1
        with path.fs.open(path.path, "rb") as stream:
            stream.seek(first)
            while left > 0 and (part := stream.read(min(BYTES_AT_ONCE, left))):
                left -= len(part)
                yield part

    return StreamingResponse(content(), 206 if is_part else 200, headers, media_type)


def _range(wanted: str, size: int) -> tuple[int, int]:
    """Return the first and the last byte to send."""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", wanted.strip())
    if not match or match[1] == match[2] == "":
        return 0, size - 1
    start, end = match.groups()
    first, last = (int(start), int(end or size)) if start else (max(0, size - int(end)), size)
    last = min(last, size - 1)
    if first > last:
        raise HTTPException(416, "The file does not have this range.", {"Content-Range": f"bytes */{size}"})
    return first, last
