"""A sum on the project's storage that the tasks of all workers add to."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from include.common.exclusive import create_file, names_in
from include.common.storage import storage_path

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

# Parts that processes add to in parallel, so that they seldom collide.
PARTS = 8
# Older entries of a part are removed at MOST_ENTRIES.
MOST_ENTRIES, KEPT_ENTRIES = 24, 8


@dataclass(frozen=True)
class SharedTotal:
    """A sum in parts, each a log of numbered entries, of which the last one counts.

    To add, a process reads the last entry of a part and creates the next. The storage creates a name only once; a
    process that lost the race reads again.

    :param folder: where it is on the storage.
    """

    folder: tuple[str, ...]

    @cached_property
    def _root(self) -> ObjectStoragePath:
        return storage_path(*self.folder)

    def read(self) -> float:
        """Return the sum.

        :raises OSError: the storage cannot be read.
        """
        paths = [self._path(*max(entries)).path for entries in self._entries().values()]
        # Not `cat`, which treats a path with a bracket as a pattern.
        contents = self._root.fs.cat_ranges(paths, None, None, on_error="raise") if paths else []
        return sum(map(_value, contents))

    def add(self, amount: float) -> None:
        """Add to the sum.

        :raises OSError: the storage cannot be read or written.
        """
        fs = self._root.fs
        while True:
            part = random.randrange(PARTS)  # noqa: S311 (no secret)
            entries = sorted(self._entries().get(part, []))
            before = _value(fs.cat_file(self._path(*entries[-1]).path)) if entries else 0.0
            number = entries[-1][1] + 1 if entries else 1
            if create_file(self._path(part, number), json.dumps(before + amount).encode()):
                break
        if len(entries) > MOST_ENTRIES:
            with suppress(OSError):  # another process may remove them, too
                fs.rm([self._path(*entry).path for entry in entries[:-KEPT_ENTRIES]])

    def put(self, name: str, amount: float, version: int = 1) -> None:
        """Count an amount under a name once, even if it is put several times. A later version replaces it.

        :param name: hexadecimal digits.
        :raises OSError: the storage cannot be written.
        """
        part = PARTS + int(name, 16)  # which nothing else adds to
        create_file(self._path(part, version), json.dumps(amount).encode())

    def _entries(self) -> dict[int, list[tuple[int, int]]]:
        """List the entries, as part and number, by part."""
        found: dict[int, list[tuple[int, int]]] = {}
        for name in names_in(self._root):
            part, separator, number = name.partition("-")
            if separator and part.isdigit() and number.isdigit():
                found.setdefault(int(part), []).append((int(part), int(number)))
        return found

    def _path(self, part: int, number: int) -> ObjectStoragePath:
        return self._root / f"{part}-{number:09}"


def _value(content: bytes) -> float:
    try:
        return float(json.loads(content))
    except (ValueError, TypeError):  # a machine that crashed may leave an empty file
        return 0.0
