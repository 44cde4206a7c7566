"""JSON lines: a JSON value per line, in UTF-8. A line ends at `\\n` only.

`str.splitlines()` would also cut at U+2028, U+2029, U+0085 and others, which are ordinary characters inside a JSON
string, and text mode would turn `\\r` into `\\n`: so lines stay bytes until they are parsed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any


class DuplicateName(ValueError):
    """An object has a name twice; the message says which."""


def json_line(value: Any) -> bytes:
    """Return the value as a line. Lone surrogates, which UTF-8 cannot encode, are escaped as in JSON."""
    return f"{json.dumps(value, ensure_ascii=False)}\n".encode("utf-8", "backslashreplace")


def read_lines(file: Any, longest: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield number, from 1, and bytes of each line; None if it is too long, and then only a part is ever in memory.

    :param file: open for reading bytes: a local file, or one on any object storage. Files of fsspec have no `readline`
        with a limit, and copy a whole block for each line. It is closed when all lines are read.
    :param longest: the maximum number of bytes of a line, including its end.
    """
    reader = io.BufferedReader(file, 1 << 16)
    number = 0
    while line := reader.readline(longest + 1):
        number += 1
        is_long = len(line) > longest
        yield number, None if is_long else line
        while is_long and line and not line.endswith(b"\n"):
            line = reader.readline(longest)


def read_json(text: str | bytes) -> Any:
    """Read a JSON text.

    :raises DuplicateName: an object has a name twice; `json` alone would keep the last.
    :raises ValueError: it is not valid, or nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise DuplicateName(f"an object has {name[:100]!r} twice")
        found[name] = value
    return found
