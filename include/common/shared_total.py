"""A sum on the project's storage that tasks on all workers add to."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from include.common.exclusive import create_file
from include.common.storage import storage_path

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

# So many parts are added to side by side, so that processes seldom get in each other's way.
PARTS = 8
# Older entries of a part are removed when there are so many.
MOST_ENTRIES, KEPT_ENTRIES = 24, 8


@dataclass(frozen=True)
class SharedTotal:
    """A sum in parts, each a log of numbered entries, of which the last is valid.

    To add, a process reads the last entry of a part and creates the next. The storage creates a name only once; a
    process that came too late reads again.

    :param folder: where on the storage it is kept.
    """

    folder: tuple[str, ...]

    def read(self) -> float:
        """Return the sum.

        :raises OSError: the storage cannot be read.
        """
        root = storage_path(*self.folder)
        last = [max(numbers) for numbers in self._entries(root).values()]
        paths = [self._path(root, *entry).path for entry in last]
        # Not `cat`, to which a path with a bracket is a pattern.
        contents = root.fs.cat_ranges(paths, None, None, on_error="raise") if paths else []
        return sum(map(_value, contents))

    def add(self, amount: float) -> None:
        """Add to the sum.

        :raises OSError: the storage cannot be read or written.
        """
        root, part = storage_path(*self.folder), random.randrange(PARTS)  # noqa: S311 (no secret)
        while True:
            entries = sorted(self._entries(root).get(part, []))
            before = _value(root.fs.cat_file(self._path(root, *entries[-1]).path)) if entries else 0.0
            number = entries[-1][1] + 1 if entries else 1
            if create_file(self._path(root, part, number), json.dumps(before + amount).encode()):
                break
            part = random.randrange(PARTS)  # noqa: S311
        if len(entries) > MOST_ENTRIES:
            with suppress(OSError):  # another process removes them, too
                root.fs.rm([self._path(root, *entry).path for entry in entries[:-KEPT_ENTRIES]])

    def put(self, name: str, amount: float, version: int = 1) -> None:
        """Count an amount under a name: once, however often it is put. A later version takes its place.

        :param name: hexadecimal digits.
        :raises OSError: the storage cannot be written.
        """
        part = PARTS + int(name, 16)  # which nobody else adds to
        create_file(self._path(storage_path(*self.folder), part, version), json.dumps(amount).encode())

    @staticmethod
    def _entries(root: ObjectStoragePath) -> dict[int, list[tuple[int, int]]]:
        """List the entries, as part and number, by part."""
        try:
            names = [path.rsplit("/", 1)[-1] for path in root.fs.ls(root.path, detail=False)]
        except FileNotFoundError:
            names = []
        found: dict[int, list[tuple[int, int]]] = {}
        for name in names:
            part, separator, number = name.partition("-")
            if separator and part.isdigit() and number.isdigit():
                found.setdefault(int(part), []).append((int(part), int(number)))
        return found

    @staticmethod
    def _path(root: ObjectStoragePath, part: int, number: int) -> ObjectStoragePath:
        return root / f"{part}-{number:09}"


def _value(content: bytes) -> float:
    try:
        return float(json.loads(content))
    except (ValueError, TypeError):  # a machine that went down may leave an empty file
        return 0.0
