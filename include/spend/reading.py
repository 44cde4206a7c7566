"""Read the ledger, and roll a day of it up: from many small files to one Parquet file."""

from __future__ import annotations

import io
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from include.common.storage import storage_path, write_artifact
from include.spend.ledger import FOLDER, Line, Record

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

# A task that was killed stays unfinished: after so long its record is rolled up, too.
ABANDONED = timedelta(days=1)


class Reading(NamedTuple):
    """The records of some days, in the order of their start, and how many more could not be read."""

    records: list[Record]
    unreadable: int


def read_days(first: date, last: date) -> Reading:
    """Read the records of the days `first` to `last`, which are of UTC.

    :raises OSError: the storage cannot be read.
    """
    days = [first + timedelta(number) for number in range((last - first).days + 1)]
    readings = [Reading([*_rolled_up(day), *small.values()], bad) for day in days for small, bad in [_small_files(day)]]
    newest: dict[str, Record] = {}
    for record in sorted((each for reading in readings for each in reading.records), key=lambda each: each.updated):
        newest[record.id] = record
    ordered = sorted(newest.values(), key=lambda record: (record.started, record.id))
    return Reading(ordered, sum(reading.unreadable for reading in readings))


def roll_up(day: date) -> ObjectStoragePath:
    """Write the records of a day into its Parquet file, a row per line, and remove the small files of what has ended.

    Nothing is lost or counted twice if it ends early, or runs again: a record is known by its id.

    :returns: the Parquet file.
    :raises OSError: the storage cannot be read or written.
    """
    small, _ = _small_files(day)
    newest = {record.id: record for record in sorted([*_rolled_up(day), *small.values()], key=lambda r: r.updated)}
    ended = {
        path: record
        for path, record in small.items()
        if record.state != "unfinished" or datetime.now(UTC) - record.updated > ABANDONED
    }
    still_open = {record.id for path, record in small.items() if path not in ended}
    file = _parquet_file(day)
    write_artifact(file, _as_parquet(record for record in newest.values() if record.id not in still_open))
    if ended:
        storage_path().fs.rm(list(ended))
    return file


def _small_files(day: date) -> tuple[dict[str, Record], int]:
    """Read the small files of a day: their records, by path, and the number of those that cannot be read."""
    folder = storage_path(*FOLDER, day.isoformat())
    if not folder.exists():
        return {}, 0
    files = [path for path in folder.fs.ls(folder.path, detail=False) if path.endswith(".json")]
    records, unreadable = {}, 0
    # Not `cat`, to which a path with a bracket is a pattern.
    contents = folder.fs.cat_ranges(files, None, None, on_error="return") if files else []
    for path, content in zip(files, contents, strict=True):
        if isinstance(content, FileNotFoundError):  # rolled up meanwhile
            continue
        if isinstance(content, Exception):
            raise content
        try:
            records[path] = Record.model_validate_json(content)
        except ValidationError:
            unreadable += 1
    return records, unreadable


def _parquet_file(day: date) -> ObjectStoragePath:
    return storage_path(FOLDER[0], "days", f"{day}.parquet")


def _as_parquet(records: Iterable[Record]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    of_record = [name for name in Record.model_fields if name != "lines"]
    types: dict[Any, Any] = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    columns = {**Record.model_fields, **Line.model_fields}
    del columns["lines"]
    schema = pa.schema(
        [(name, types.get(field.annotation, pa.timestamp("us", "UTC"))) for name, field in columns.items()]
    )
    rows = [
        {**{name: getattr(record, name) for name in of_record}, **line.model_dump()}
        for record in records
        for line in record.lines
    ]
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema), buffer, compression="zstd")
    return buffer.getvalue()


def _rolled_up(day: date) -> list[Record]:
    file = _parquet_file(day)
    if not file.exists():
        return []
    from pyarrow import parquet

    found: dict[str, Record] = {}
    for row in parquet.read_table(io.BytesIO(file.read_bytes())).to_pylist():
        line = Line.model_validate({name: row.pop(name) for name in Line.model_fields})
        found.setdefault(row["id"], Record.model_validate(row)).lines.append(line)
    return list(found.values())
