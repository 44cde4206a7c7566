"""Read the ledger, and roll up a day of it: from many small files to one Parquet file.

The ledger is read as an Arrow table with a row per attempt, model and prompt. Its columns are the fields of `Record`
and `Line`, and `day`. A record that has ended no longer changes: a process reads its small file once, and keeps the
last KEPT_DAYS days.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from include.common.storage import open_path, storage_path, write_artifact
from include.common.stored_files import delete_files
from include.spend.ledger import FOLDER, Line, Record

if TYPE_CHECKING:
    import pyarrow as pa
    from airflow.sdk import ObjectStoragePath

# A task that was killed stays unfinished: after this time its record is rolled up, too.
ABANDONED = timedelta(days=1)
KEPT_DAYS = 8
COLUMNS = {name: field.annotation for name, field in {**Record.model_fields, **Line.model_fields}.items()}
del COLUMNS["lines"]


class Reading(NamedTuple):
    """The ledger's rows of some days, and how many of its files could not be read."""

    rows: pa.Table
    unreadable: int


def read_days(first: date, last: date) -> Reading:
    """Read the days `first` to `last`, in UTC.

    :raises OSError: the storage cannot be read.
    """
    import pyarrow as pa

    wanted = {str(first + timedelta(number)) for number in range((last - first).days + 1)}
    rolled_up, unreadable = _rolled_up(wanted)
    tables = [_rows([]).append_column("day", pa.array([], pa.string()))]
    for day in sorted(wanted & (rolled_up.keys() | set(_names(storage_path(*FOLDER))))):
        small = _small_files(str(storage_path(*FOLDER, day))).read()
        rows = pa.concat_tables([_without(rolled_up.get(day, _rows([])), small.rows), small.rows])
        tables.append(rows.append_column("day", pa.repeat(day, rows.num_rows)))
        unreadable += small.unreadable
    return Reading(pa.concat_tables(tables), unreadable)


def only(rows: pa.Table, **wanted: Collection[str]) -> pa.Table:
    """Return the rows whose columns have one of these values."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, values in wanted.items():
        rows = rows.filter(pc.is_in(rows[name], value_set=pa.array(list(values), pa.string())))
    return rows


def roll_up(day: date) -> None:
    """Write the records of a day into its Parquet file, and remove the small files of those that have ended.

    Nothing is lost or counted twice if this is interrupted or runs again: a record is identified by its id.

    :raises OSError: the storage cannot be read or written.
    :raises ValueError: the day's Parquet file is broken.
    """
    import pyarrow as pa
    from pyarrow import parquet

    folder, file = storage_path(*FOLDER, str(day)), storage_path(FOLDER[0], "days", f"{day}.parquet")
    records, _ = _read_records(folder, _names(folder, ".json"))
    ended = {
        name: record
        for name, record in records.items()
        if record.has_ended or datetime.now(UTC) - record.updated > ABANDONED
    }
    if not ended:
        return
    rolled_up, unreadable = _rolled_up([str(day)])
    if unreadable:
        raise ValueError(f"{file} is not a Parquet file of the ledger: move it away, and clear this task.")
    # A record that is still open may be in the file from when it looked abandoned: it is taken out again.
    others = _without(rolled_up.get(str(day), _rows([])), _rows(records.values()))
    buffer = io.BytesIO()
    parquet.write_table(pa.concat_tables([others, _rows(ended.values())]), buffer, compression="zstd")
    write_artifact(file, buffer.getvalue())
    delete_files(folder, [(folder / name).path for name in ended])


class _SmallFiles:
    """The small files of a day, and the rows of those that were read and are final."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._turn = Lock()
        self._final: set[str] = set()
        self._rows = _rows([])

    def read(self) -> Reading:
        """Read what is new or unfinished; return the rows of all."""
        import pyarrow as pa

        with self._turn:
            folder = open_path(self._folder)
            names = set(_names(folder, ".json"))
            if not self._final <= names:  # some were rolled up since
                self._final, self._rows = set(), _rows([])
            records, unreadable = _read_records(folder, names - self._final)
            final = {name: record for name, record in records.items() if record.has_ended}
            self._rows = pa.concat_tables([self._rows, _rows(final.values())]).combine_chunks()
            self._final |= final.keys()
            others = _rows(record for name, record in records.items() if name not in final)
            return Reading(pa.concat_tables([self._rows, others]), unreadable)


_small_files = lru_cache(KEPT_DAYS)(_SmallFiles)


def _names(folder: ObjectStoragePath, ending: str = "") -> list[str]:
    try:
        paths = folder.fs.ls(folder.path, detail=False)
    except FileNotFoundError:
        return []
    return [path.rstrip("/").rpartition("/")[2] for path in paths if path.endswith(ending)]


def _read_records(folder: ObjectStoragePath, names: Collection[str]) -> tuple[dict[str, Record], int]:
    """Read small files: their records, by name, and the number of those that cannot be read."""
    records, unreadable = {}, 0
    for name, content in _contents(folder, names):
        try:
            records[name] = Record.model_validate_json(content)
        except ValidationError:
            unreadable += 1
    return records, unreadable


def _contents(folder: ObjectStoragePath, names: Collection[str]) -> Iterable[tuple[str, bytes]]:
    paths = [(folder / name).path for name in names]
    # Not `cat`, which takes a path with a bracket as a pattern.
    contents = folder.fs.cat_ranges(paths, None, None, on_error="return") if paths else []
    for name, content in zip(names, contents, strict=True):
        if isinstance(content, FileNotFoundError):  # it was rolled up since
            continue
        if isinstance(content, Exception):
            raise content
        yield name, content


def _rolled_up(days: Collection[str]) -> tuple[dict[str, pa.Table], int]:
    """Read the Parquet files of these days, by day, and count those that cannot be read."""
    import pyarrow as pa
    from pyarrow import parquet

    folder = storage_path(FOLDER[0], "days")
    found, unreadable = {}, 0
    for name, content in _contents(folder, {f"{day}.parquet" for day in days} & set(_names(folder))):
        try:
            table = parquet.read_table(io.BytesIO(content))
            found[name.removesuffix(".parquet")] = table.select(list(COLUMNS)).cast(_schema())
        except (pa.ArrowException, OSError, KeyError):
            unreadable += 1
    return found, unreadable


def _without(rows: pa.Table, newer: pa.Table) -> pa.Table:
    """Return the rows of records that `newer` does not have."""
    import pyarrow.compute as pc

    return rows.filter(pc.invert(pc.is_in(rows["id"], value_set=newer["id"].combine_chunks())))


def _schema() -> pa.Schema:
    import pyarrow as pa

    types: dict[Any, Any] = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    return pa.schema([(name, types.get(kind, pa.timestamp("us", "UTC"))) for name, kind in COLUMNS.items()])


def _rows(records: Iterable[Record]) -> pa.Table:
    import pyarrow as pa

    of_record = [name for name in Record.model_fields if name != "lines"]
    rows = [
        {**{name: getattr(record, name) for name in of_record}, **line.__dict__}
        for record in records
        for line in record.lines
    ]
    return pa.Table.from_pylist(rows, _schema())
