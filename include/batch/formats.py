"""Readers for the rows of CSV, JSON lines and Parquet files, one by one, so that a file may be of any size.

For each row, a reader yields the cells of the requested columns, or why the row cannot be read. It raises
AirflowFailException if the file itself is at fault.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from airflow.providers.common.compat.sdk import AirflowFailException

from include.common.json_lines import DuplicateName, read_json, read_lines

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath
    from pyarrow.parquet import ParquetFile

# A CSV field this long is the rest of the file after an unclosed quote.
LONGEST_LINE = 1_000_000
# How much of a Parquet file is in memory: so many rows, and so many bytes of each column.
PARQUET_ROWS = 100
PARQUET_BYTES = 1 << 22
# How many of a file's columns the error about a missing one names.
COLUMNS_SHOWN = 50


class Unreadable(NamedTuple):
    """A row or a cell that cannot be read, and why."""

    reason: str


Cells = dict[str, Any] | Unreadable


def csv_rows(path: ObjectStoragePath, columns: list[str]) -> Iterator[Cells]:
    """Read a CSV file with a header; its columns are separated by commas, semicolons or tabs."""
    csv.field_size_limit(LONGEST_LINE)
    with path.open("rb") as file:
        lines = _csv_lines(path, file)
        head = []  # blank lines and the header
        for line in lines:
            head.append(line)
            if line.strip():
                break
        first = head[-1] if head else ""
        separator = next((sign for sign in ";\t" if sign in first and "," not in first), ",")
        # Not csv.DictReader, which accepts a row that is longer or shorter than the header.
        reader = csv.reader(chain(head, lines), delimiter=separator, strict=True)
        try:
            header = next((names for names in reader if any(map(str.strip, names))), [])
            if not header:
                raise AirflowFailException(f"{path} is empty.")
            _require(path, columns, header)
            for values in reader:
                if len(values) == len(header):
                    yield dict(zip(header, values, strict=True))
                elif values:
                    yield Unreadable(f"line {reader.line_num} has {len(values)} fields, the header {len(header)}")
        except csv.Error as error:
            reason = f"is not valid CSV: {error}"
            if "new-line character" in str(error):
                reason = "ends with a carriage return alone, as on old Macs: save the file with other line ends"
            raise AirflowFailException(f"{path}, line {reader.line_num}, {reason}.") from None


def json_rows(path: ObjectStoragePath, columns: list[str]) -> Iterator[Cells]:
    """Read JSON lines. A field that a line lacks is null; a field that every line lacks is a wrong name."""
    found: dict[str, None] = {}
    has_begun = False
    with path.open("rb") as file:
        for number, line in _text_lines(path, file):
            if isinstance(line, str) and not line.strip():
                continue
            cells = line if isinstance(line, Unreadable) else _json_cells(number, line, columns)
            if isinstance(cells, Unreadable):
                if not has_begun:
                    raise AirflowFailException(f"{path} is not JSON lines: {cells.reason}.")
                yield cells
            else:
                names = columns if len(found) > COLUMNS_SHOWN else cells
                found |= {name: None for name in names if name in cells}
                yield {column: cells.get(column) for column in columns}
            has_begun = True
    if has_begun:
        _require(path, columns, list(found))


def _json_cells(number: int, line: str, columns: list[str]) -> Cells:
    try:
        cells = read_json(line)
    except DuplicateName as error:
        return dict.fromkeys(columns, Unreadable(f"line {number}: {error}"))
    except ValueError:
        return Unreadable(f"line {number} is not JSON")
    return cells if isinstance(cells, dict) else Unreadable(f"line {number} is not a JSON object")


def parquet_rows(path: ObjectStoragePath, columns: list[str]) -> Iterator[Cells]:
    """Read a Parquet file page by page, as a row group may be larger than the memory."""
    from pyarrow import parquet

    # With a cache, the columns would evict each other's read-ahead.
    with path.open("rb", cache_type="none") as file:
        with _errors_of_file(f"{path} is not a Parquet file that can be read"):
            table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=PARQUET_BYTES)
            names = table.schema_arrow.names
        _require(path, columns, names)
        for group in range(table.num_row_groups):
            values = [_parquet_values(path, table, group, column) for column in columns]
            try:
                yield from (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))
            except ValueError:
                raise AirflowFailException(
                    f"{path}, row group {group + 1}, has columns of different lengths."
                ) from None


def _parquet_values(path: ObjectStoragePath, table: ParquetFile, group: int, column: str) -> Iterator[Any]:
    with _errors_of_file(f"{path}, row group {group + 1}, column {column!r}, cannot be read"):
        for batch in table.iter_batches(batch_size=PARQUET_ROWS, row_groups=[group], columns=[column]):
            yield from (_parquet_value(column, scalar) for scalar in batch.column(0))


def _parquet_value(column: str, scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return Unreadable(f"column {column!r}: byte {error.start + 1} is not UTF-8")
    except (ValueError, OverflowError) as error:  # for example a date after the year 9999
        return Unreadable(f"column {column!r}: {scalar.type} out of range: {error}")


@contextmanager
def _errors_of_file(where: str) -> Iterator[None]:
    """Raise an AirflowFailException if a Parquet file is at fault. Errors of the storage are raised unchanged."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, ValueError, OverflowError, OSError) as error:
        # Arrow's own OSErrors have no number and are not of a subclass.
        if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
            raise
        raise AirflowFailException(f"{where}: {error}") from None


def _require(path: ObjectStoragePath, columns: list[str], found: list[str]) -> None:
    shown = ", ".join(map(repr, found[:COLUMNS_SHOWN])) or "-"
    for column in columns:
        if column not in found:
            raise AirflowFailException(f"{path} has no column {column!r}. It has: {shown}.")
        if found.count(column) > 1:
            raise AirflowFailException(f"{path} has the column {column!r} twice. It has: {shown}.")


def _csv_lines(path: ObjectStoragePath, file: IO[bytes]) -> Iterator[str]:
    for _, line in _text_lines(path, file):
        if isinstance(line, Unreadable):
            raise AirflowFailException(f"{path}, {line.reason}.")
        yield line


def _text_lines(path: ObjectStoragePath, file: IO[bytes]) -> Iterator[tuple[int, str | Unreadable]]:
    """Yield the number and the text of each line, without a byte order mark."""
    for number, line in read_lines(file, LONGEST_LINE):
        if line is None:
            raise AirflowFailException(f"{path}, line {number}, is longer than {LONGEST_LINE} bytes.")
        yield number, _text(number, line)


def _text(number: int, line: bytes) -> str | Unreadable:
    if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return Unreadable("line 1, is UTF-16: save the file as UTF-8")
    if b"\0" in line:
        return Unreadable(f"line {number}, holds a NUL byte: it is UTF-16, to be saved as UTF-8, or it is not text")
    try:
        return line.removeprefix(codecs.BOM_UTF8).decode() if number == 1 else line.decode()
    except UnicodeDecodeError as error:
        where = f"line {number}, byte {error.start + 1}"
        return Unreadable(f"{where}, is not UTF-8 (is it Latin-1 or Windows-1252?): save the file as UTF-8")
