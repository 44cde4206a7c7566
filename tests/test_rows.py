"""The rows of files as people have them: read, or refused by name."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa  # noqa: TID253
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from pyarrow import parquet  # noqa: TID253

from include.batch.rows import Row, read_rows
from include.common.storage import storage_path, write_artifact
from tests.storages import on_storage

pytestmark = pytest.mark.one_stack


@pytest.fixture
def rows(storage: Any) -> Callable[..., list[Row]]:
    """Read the rows of a file of this name and content."""

    def read(name: str, content: bytes | pa.Table, **options: Any) -> list[Row]:
        if isinstance(content, pa.Table):
            content = parquet_file(content, **options)
        path = storage_path(name)
        write_artifact(path, content)
        return list(read_rows(path, "text", "id"))

    return read


def parquet_file(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(table, file, **options)
    return file.getvalue()


def texts(rows: list[Row]) -> list[tuple[str, str | None]]:
    return [(row.id, row.text) for row in rows]


# ---- CSV and JSON lines


GOOD = {
    "UPPER.CSV": b"id,text\n1,a\n",
    "first-lines-blank.csv": b"\n  \nid,text\n1,a\n",
    "semicolons.csv": b'id;text\n1;a\n2;"b;c, d"\n',
    "tabs.csv": b"id\ttext\n1\ta\n",
    "windows.csv": b"\xef\xbb\xbfid,text\r\n1,a\r\n",
    "another-column-twice.csv": b"id,text,note,note\n1,a,x,y\n",
    "mark.jsonl": b'\xef\xbb\xbf{"id": 1, "text": "a"}\n',
    "blank.jsonl": b'\n{"id": 1, "text": "a"}\n',
}


@pytest.mark.parametrize("name", GOOD)
def test_what_can_be_read_without_a_doubt_is_read(rows, name):
    assert texts(rows(name, GOOD[name]))[0] == ("1", "a")


BAD = {
    "twice.csv": (b"id,text,text\n1,a,\n", "has the column 'text' twice. It has: 'id', 'text', 'text'."),
    "ids-twice.csv": (b"id,id,text\n1,2,a\n", "has the column 'id' twice"),
    "utf-16.csv": ("id,text\n1,a\n".encode("utf-16"), "line 1, is UTF-16: save the file as UTF-8"),
    "utf-16.jsonl": ('{"id":1,"text":"a"}\n'.encode("utf-16"), "line 1, is UTF-16: save the file as UTF-8"),
    "no-mark.csv": ("id,text\n1,a\n".encode("utf-16-le"), "line 1, holds a NUL byte: it is UTF-16"),
    "no-mark.jsonl": ('{"id":1,"text":"a"}\n'.encode("utf-16-be"), "line 1, holds a NUL byte: it is UTF-16"),
    "latin-1.csv": ("id,text\n1,café\n".encode("latin-1"), "line 2, byte 6, is not UTF-8 (is it Latin-1"),
    "latin-1.jsonl": ('{"text": "é"}\n'.encode("latin-1"), "line 1, byte 11, is not UTF-8 (is it Latin-1"),
    "old-mac.csv": (b"id,text\r1,a\r2,b\r", "line 1, ends with a carriage return alone, as on old Macs"),
    "array.jsonl": (b'[{"id": 1, "text": "a"}]\n', "is not JSON lines: line 1 is not a JSON object"),
    "pretty.jsonl": (b'{\n"id": 1,\n"text": "a"}\n', "is not JSON lines: line 1 is not JSON"),
    "other.jsonl": (b'{"id": 1, "body": "a"}\n' * 3, "has no column 'text'. It has: 'id', 'body'."),
    "text.txt": (b"a\n", "its name must end in .csv, .jsonl, .parquet"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_by_what_it_is(rows, name):
    content, message = BAD[name]
    with pytest.raises(AirflowFailException) as refused:
        rows(name, content)
    assert message in str(refused.value)
    assert name in str(refused.value)


def test_json_lines_may_leave_out_what_is_null_and_a_row_without_an_id_has_its_number(rows):
    found = rows("export.jsonl", b'{"id":1}\n{"id":2,"text":"slow"}\n{"text":"no id"}\n{"id":"","text":"x"}\n{}\n')

    assert texts(found) == [("1", None), ("2", "slow"), ("3", "no id"), ("4", "x"), ("5", None)]
    assert found[0].error == "column 'text' holds nothing, not a text"


def test_a_column_that_only_a_late_line_has_is_there_and_a_missing_one_is_named_among_few(rows):
    lines = [f'{{"id": {n}, "key {n}": 0}}\n' for n in range(200)]
    assert rows("late.jsonl", "".join([*lines, '{"text": "x"}\n']).encode())[-1].text == "x"
    with pytest.raises(AirflowFailException, match=r"has no column 'text'\. It has: 'id', 'key 0'") as refused:
        rows("never.jsonl", "".join(lines).encode())
    assert len(str(refused.value)) < 1_000


def test_a_row_of_csv_without_an_id_has_its_number(rows):
    assert texts(rows("rows.csv", b"id,text\n,a\nx,b\n")) == [("1", "a"), ("x", "b")]


def test_a_line_of_json_that_is_at_fault_fails_alone(rows):
    content = b'{"text":"a","text":"b"}\n{"id":2,"text":"caf\xe9"}\n{"id":3,"text":"x\0"}\nno\n7\n{"id":6,"text":"c"}\n'
    found = rows("rows.jsonl", content)

    assert [row.text for row in found] == [None] * 5 + ["c"]
    assert [row.error_class for row in found[:5]] == ["unreadable"] * 5
    reasons = ("has 'text' twice", "byte 20, is not UTF-8", "NUL", "not JSON", "object")
    for row, reason in zip(found, reasons, strict=False):
        assert reason in row.error
        assert f"line {row.number}" in row.error


# ---- Parquet


@on_storage("disk", "s3", "memory")
def test_parquet_is_read_over_row_groups_in_the_order_of_the_file(rows):
    table = pa.table({"more": range(1200), "text": [f"t{n}" for n in range(1200)], "id": [*range(1199), None]})
    found = texts(rows("ROWS.Parquet", table, row_group_size=700))

    assert found == [*((str(n), f"t{n}") for n in range(1199)), ("1200", "t1199")]


def test_a_column_of_parquet_that_is_there_twice_is_refused_and_another_is_not(rows):
    def table(*names: str) -> pa.Table:
        return pa.Table.from_arrays([pa.array(["a"])] * len(names), names)

    assert texts(rows("rows.parquet", table("id", "text", "note", "note"))) == [("a", "a")]
    for names in (("id", "text", "text"), ("id", "text", "id")):
        with pytest.raises(AirflowFailException, match=rf"has the column '{names[-1]}' twice"):
            rows("rows.parquet", table(*names))


def test_a_value_of_parquet_that_is_no_text_or_no_date_fails_its_own_row(rows):
    latin = pa.array([b"fine", "café".encode("latin-1"), b"too", b"4"], pa.binary()).view(pa.string())
    days = pa.array([0, 1, 2**31 - 1, 3], pa.int32()).view(pa.date32())
    found = rows("rows.parquet", pa.table({"id": days, "text": latin}))

    assert [(row.text, row.error_class) for row in found] == [
        ("fine", ""),
        (None, "unreadable"),
        (None, "unreadable"),
        ("4", ""),
    ]
    assert found[1].error == "column 'text': byte 4 is not UTF-8"
    assert found[2].error.startswith("column 'id': date32[day] out of range: ")
    assert (found[0].id, found[2].id) == ("1970-01-01", "3")


def test_a_broken_page_is_refused_with_file_row_group_and_column(rows):
    table = pa.table({"id": [f"i{n}" for n in range(2000)], "text": [f"text {n}" for n in range(2000)]})
    content = bytearray(parquet_file(table, row_group_size=1000, compression="snappy", use_dictionary=False))
    column = parquet.ParquetFile(io.BytesIO(content)).metadata.row_group(1).column(1)
    start = column.data_page_offset + 40
    content[start : start + 400] = b"\xff" * 400

    with pytest.raises(AirflowFailException, match=r"broken.parquet, row group 2, column 'text', cannot be read: "):
        rows("broken.parquet", bytes(content))


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.99])
def test_a_parquet_file_that_is_cut_off_is_refused_by_name(rows, cut):
    content = parquet_file(pa.table({"id": ["1"], "text": ["a"]}))
    with pytest.raises(AirflowFailException, match=r"cut\.parquet is not a Parquet file that can be read"):
        rows("cut.parquet", content[: int(len(content) * cut)])


def test_any_bytes_of_parquet_that_are_damaged_give_rows_or_a_refusal(rows):
    table = pa.table({"id": ["1", "2"], "text": ["a", "b"], "at": [dt.date(2026, 1, 1), None]})
    whole = parquet_file(table, compression="none")
    for place in range(4, len(whole) - 8, 3):
        for value in (0x00, 0x7F, 0xFF):
            content = bytearray(whole)
            content[place] = value
            try:
                assert len(rows("damaged.parquet", bytes(content))) <= 2
            except AirflowFailException as refused:
                assert "damaged.parquet" in str(refused)  # noqa: PT017


def test_a_storage_that_fails_is_not_taken_for_a_broken_file(rows, monkeypatch):
    table = pa.table({"id": ["1"], "text": ["a"]})
    path = storage_path("rows.parquet")
    write_artifact(path, parquet_file(table))

    def failing(*args: Any, **kwargs: Any) -> bytes:
        raise ConnectionResetError("the storage has gone away")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileOpener.read", failing)
    with pytest.raises(ConnectionResetError):
        list(read_rows(path, "text", "id"))


def test_a_row_group_is_read_page_by_page(storage):
    path = storage_path("large.parquet")
    table = pa.table({"id": range(3_000), "text": [f"{n:04}" * 5_000 for n in range(3_000)]})  # 60 MB
    write_artifact(path, parquet_file(table, compression="none", use_dictionary=False))
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        assert sum(len(row.text or "") for row in read_rows(path, "text", "id")) == 60_000_000
    finally:
        pa.set_memory_pool(before)
    assert 0 < pool.max_memory() < 25_000_000
