"""The rows of a file and their results. Rows are read one by one from CSV, JSON lines or Parquet, whatever its size."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from airflow.providers.common.compat.sdk import AirflowFailException

from include.common.json_lines import read_lines
from include.common.storage import local_file, stored_file
from include.common.text import whole_characters

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

# Longer texts are no rows for a model; a CSV field this long is the rest of the file after a quote that nobody closed.
LONGEST_TEXT = 200_000
LONGEST_LINE = 1_000_000
PARQUET_BATCH = 500


class Row(NamedTuple):
    """A row to answer.

    :param number: its place in the input, from 1.
    :param id: what the input calls it.
    :param text: what the model gets; None where there is nothing to ask, for the reason `error`.
    """

    number: int
    id: str
    text: str | None
    error: str = ""
    error_class: str = ""


@dataclass(frozen=True)
class Result:
    """What became of a row: an answer, or an error and its class.

    :param input_tokens: of all calls for the row, as are `output_tokens`, `calls` and `cost_usd` (US dollars; None: no
        known price).
    """

    row: int
    id: str
    answer: dict[str, Any] | None = None
    error: str = ""
    error_class: str = ""
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0


class _Unreadable(NamedTuple):
    """A row that is there, but not as it should be."""

    reason: str


def input_file(url: str | None, default: Path) -> ObjectStoragePath:
    """Open the file at this URL of the project's storage, or the default file of the project if there is no URL.

    :raises AirflowFailException: the URL is of somewhere else.
    """
    try:
        return stored_file(url) if url else local_file(default)
    except ValueError as error:
        raise AirflowFailException(str(error)) from None


def read_rows(path: ObjectStoragePath, text_column: str, id_column: str | None) -> Iterator[Row]:
    """Read the rows of a file as its name ends: .csv, .jsonl or .parquet.

    :param id_column: the column with the rows' names; None for their numbers.
    :raises AirflowFailException: the file is none of these, has no rows, or lacks a column; the message names those
        that there are.
    """
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise AirflowFailException(f"{path} is not read: its name must end in {', '.join(readers)}.")
    if not path.is_file():
        raise AirflowFailException(f"There is no file {path}.")
    columns = [text_column, *([id_column] if id_column else [])]
    number = 0
    for number, cells in enumerate(readers[path.suffix](path, columns), 1):
        yield _row(number, cells, text_column, id_column)
    if not number:
        raise AirflowFailException(f"{path} has no rows.")


def _row(number: int, cells: dict[str, Any] | _Unreadable, text_column: str, id_column: str | None) -> Row:
    if isinstance(cells, _Unreadable):
        return Row(number, str(number), None, cells.reason, "unreadable")
    name = whole_characters(str(cells[id_column])) if id_column else str(number)
    text = cells[text_column]
    if not isinstance(text, str):
        what = "nothing" if text is None else f"a value of type {type(text).__name__}"
        return Row(number, name, None, f"column {text_column!r} holds {what}, not a text", "not a text")
    if not text.strip():
        return Row(number, name, None, f"column {text_column!r} is empty", "empty")
    if len(text) > LONGEST_TEXT:
        return Row(number, name, None, f"{len(text)} characters are more than {LONGEST_TEXT}", "too long")
    return Row(number, name, whole_characters(text))


def _csv_rows(path: ObjectStoragePath, columns: list[str]) -> Iterator[dict[str, Any] | _Unreadable]:
    csv.field_size_limit(LONGEST_LINE)
    with path.open("rb") as file:
        # Like csv.DictReader, but a row of another length than the header is told from one that fits.
        reader = csv.reader(_decoded(path, file), strict=True)
        try:
            header = next(reader, [])
            if not header:
                raise AirflowFailException(f"{path} is empty.")
            _require(path, columns, header)
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    yield _Unreadable(f"line {reader.line_num} has {len(values)} fields, the header {len(header)}")
                else:
                    yield dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise AirflowFailException(f"{path}, line {reader.line_num}, is no CSV: {error}.") from None


def _json_rows(path: ObjectStoragePath, columns: list[str]) -> Iterator[dict[str, Any] | _Unreadable]:
    first = True
    with path.open("rb") as file:
        for number, line in enumerate(_lines(path, file), 1):
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
            except (ValueError, RecursionError) as error:
                if first:
                    raise AirflowFailException(
                        f"{path} is no JSON lines: line {number} is not JSON ({type(error).__name__})."
                    ) from None
                yield _Unreadable(f"line {number} is not JSON")
                continue
            if first:
                _require(path, columns, list(cells) if isinstance(cells, dict) else [])
                first = False
            if not isinstance(cells, dict):
                yield _Unreadable(f"line {number} is no JSON object")
            else:
                yield {column: cells.get(column) for column in columns}


def _parquet_rows(path: ObjectStoragePath, columns: list[str]) -> Iterator[dict[str, Any] | _Unreadable]:
    import pyarrow as pa
    from pyarrow import parquet

    with path.open("rb") as file:
        try:
            table = parquet.ParquetFile(file)
        except pa.ArrowInvalid as error:
            raise AirflowFailException(f"{path} is no Parquet file: {error}") from None
        _require(path, columns, table.schema_arrow.names)
        for batch in table.iter_batches(batch_size=PARQUET_BATCH, columns=columns):
            yield from batch.to_pylist()


def _require(path: ObjectStoragePath, columns: list[str], found: list[str]) -> None:
    if missing := [column for column in columns if column not in found]:
        raise AirflowFailException(
            f"{path} has no column {missing[0]!r}. It has: {', '.join(map(repr, found)) or '-'}."
        )


def _decoded(path: ObjectStoragePath, file: IO[bytes]) -> Iterator[str]:
    """Decode the lines, without a byte order mark.

    :raises AirflowFailException: a line is not UTF-8, or holds a NUL, as a file of another kind does.
    """
    for number, line in enumerate(_lines(path, file), 1):
        if b"\0" in line:
            raise AirflowFailException(f"{path}, line {number}, holds a NUL byte: it is no CSV.")
        try:
            yield line.removeprefix(codecs.BOM_UTF8).decode() if number == 1 else line.decode()
        except UnicodeDecodeError as error:
            raise AirflowFailException(
                f"{path}, line {number}, byte {error.start + 1}, is not UTF-8: save the file as UTF-8."
            ) from None


def _lines(path: ObjectStoragePath, file: IO[bytes]) -> Iterator[bytes]:
    for number, line in read_lines(file, LONGEST_LINE):
        if line is None:
            raise AirflowFailException(f"{path}, line {number}, is longer than {LONGEST_LINE} bytes.")
        yield line
