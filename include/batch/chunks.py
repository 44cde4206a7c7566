"""The rows of a batch on object storage, in chunks: what to answer, what is answered so far, and the results.

A chunk's folder is named by a hash of its rows, the prompt, the form of the answer and the model. So the same request
again finds the paid answers, and any change starts over. The folder holds

- `rows.jsonl`: the rows,
- `journal/`: a line for each result, written before the result counts,
- `results.jsonl`: the results in the order of the rows. It replaces the journal once all results are there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import chain, islice
from typing import TYPE_CHECKING
from uuid import uuid4

from include.batch.rows import Result, Row
from include.common.json_lines import json_line
from include.common.storage import read_artifact, write_artifact

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

CHUNK_ROWS = 500
LEAST_CHUNK_ROWS = 10
# Tasks share whole chunks. In a batch with more than a chunk per task, the first EVENLY_SHARED_ROWS rows are cut into
# small chunks, so that shares differ by no more than one of these.
EVENLY_SHARED_ROWS, SMALL_CHUNK_ROWS = 10_000, 100


class Chunk:
    """The chunk in a folder."""

    def __init__(self, folder: ObjectStoragePath) -> None:
        self.folder = folder
        self.open_results: dict[int, Result] = {}
        self._lines: list[bytes] = []
        self._lock = asyncio.Lock()
        self._failure: Exception | None = None

    def rows(self) -> list[Row]:
        """Read all rows, in order."""
        return [Row(*json.loads(line)) for line in _lines(read_artifact(self.folder / "rows.jsonl"))]

    def results(self) -> list[Result] | None:
        """Read the results, in the order of the rows; None while some are missing."""
        try:
            content = read_artifact(self.folder / "results.jsonl")
        except FileNotFoundError:
            return None
        return [Result(**json.loads(line)) for line in _lines(content)]

    def so_far(self) -> tuple[list[Result], bool]:
        """Read the known results, and whether they are complete. Complete results are in the order of the rows."""
        results = self.results()
        if results is None:
            recalled = self.recall()
            results = self.results()  # another process may have completed the chunk and deleted its journal
            if results is None:
                return recalled, False
        return results, True

    def recall(self) -> list[Result]:
        """Read the journal: the results so far of a chunk that is not complete."""
        journal = self.folder / "journal"
        paths = journal.fs.find(journal.path)
        # Not `cat`, which takes a path with a bracket for a pattern.
        for content in journal.fs.cat_ranges(paths, None, None, on_error="return") if paths else []:
            if isinstance(content, FileNotFoundError):  # another process is deleting the journal
                continue
            if isinstance(content, Exception):
                raise content
            for line in _lines(content):
                with suppress(ValueError):  # its process was killed while it wrote: the row does not count
                    entry = json.loads(line)
                    self.open_results.setdefault(entry["row"], Result(**entry))
        return list(self.open_results.values())

    async def note(self, result: Result) -> None:
        """Put a result into the journal; it is on the storage when this returns.

        Results that arrive during a write share the next one.

        :raises Exception: the error of the first write that failed, from then on for every call.
        """
        mine = self._lines
        mine.append(json_line(asdict(result)))
        async with self._lock:
            if self._failure:
                raise self._failure
            if mine is self._lines:  # else the last holder of the lock has written it
                self._lines = []
                path = self.folder / "journal" / f"{uuid4().hex}.jsonl"  # another process may write there, too
                try:
                    await asyncio.to_thread(_write, path, b"".join(mine))
                except Exception as error:
                    self._failure = error
                    raise
        self.open_results[result.row] = result

    def complete(self, rows: Sequence[Row]) -> None:
        """Write the results of all rows, and delete the journal."""
        lines = [json_line(asdict(self.open_results[row.number])) for row in rows]
        write_artifact(self.folder / "results.jsonl", b"".join(lines))
        journal = self.folder / "journal"
        with suppress(OSError):  # another process may still write there; nothing reads it any more
            journal.fs.rm(journal.path, recursive=True)
        self.open_results = {}


def write_chunks(
    rows: Iterable[Row], settings: str, folder: ObjectStoragePath, tasks: int
) -> Iterator[tuple[str, int]]:
    """Write the rows in chunks below the folder (see `cut`); yield the name and the number of rows of each."""
    for name, lines in cut(rows, settings, tasks):
        write_artifact(folder / name / "rows.jsonl", b"".join(lines))
        yield name, len(lines)


def cut(rows: Iterable[Row], settings: str, tasks: int) -> Iterator[tuple[str, list[bytes]]]:
    """Cut rows into chunks; yield the name and the lines of each.

    Few rows are cut into one chunk per task.

    :param settings: everything besides the row that decides its answer.
    """
    rows = iter(rows)
    first = list(islice(rows, tasks * CHUNK_ROWS + 1))
    is_few = len(first) <= tasks * CHUNK_ROWS
    size = max(LEAST_CHUNK_ROWS, -(-len(first) // tasks)) if is_few else SMALL_CHUNK_ROWS
    rows = chain(first, rows)
    written = 0
    while lines := [json_line(row) for row in islice(rows, size if written < EVENLY_SHARED_ROWS else CHUNK_ROWS)]:
        written += len(lines)
        yield hashlib.sha256(settings.encode() + b"\0" + b"".join(lines)).hexdigest()[:32], lines


def _write(path: ObjectStoragePath, content: bytes) -> None:
    for may_repeat in (True, False):
        try:
            write_artifact(path, content)
            return
        except (FileNotFoundError, FileExistsError):  # another process is deleting the journal of a complete chunk
            if not may_repeat:
                raise


def _lines(content: bytes) -> list[bytes]:
    return content.removesuffix(b"\n").split(b"\n") if content else []
