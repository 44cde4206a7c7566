"""`include.common.json_lines`, and any text through all that a batch writes: rows, chunks, journal and results."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from airflow.sdk import dag, task
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from include.ai import BaseModel
from include.batch.chunks import Chunk, write_chunks
from include.batch.report import COLUMNS, results_writer
from include.batch.rows import Result, Row, read_rows
from include.batch_api.requests import Answers, check_requests, write_upload
from include.common.json_lines import json_line, read_lines
from include.common.storage import storage_path, write_artifact
from include.common.text import clean_json, clean_text
from include.messages.contract import parse_message
from include.sample.feedback import read_texts
from tests.hostile_messages import Message
from tests.storages import on_storage
from tests.test_chat_examples import check, conversation, file_of, lines

pytestmark = pytest.mark.one_stack

# Where str.splitlines() cuts, what text mode changes, and what JSON, CSV and UTF-8 have to escape.
ODD = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\0\ufeff\ud83d\ude00\udfff\"\\,;'{}[]<>\t "
SURROGATES: Any = ["Cs"]


def texts(without: str = "", half_characters: bool = True) -> st.SearchStrategy[str]:
    """Any text, in which odd characters are frequent."""
    odd = [sign for sign in ODD if sign not in without and (half_characters or not "\ud800" <= sign <= "\udfff")]
    other = st.characters(exclude_characters=without, exclude_categories=() if half_characters else SURROGATES)
    return st.lists(st.sampled_from(odd) | other, max_size=20).map("".join)


def whole(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def any_examples(most: int = 60) -> settings:
    return settings(max_examples=most, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ---- Lines


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b""))), st.booleans())
def test_a_line_ends_at_a_newline_only(parts, is_ended):
    content = b"\n".join(parts) + (b"\n" if is_ended and parts else b"")
    expected = io.BytesIO(content).readlines()

    assert list(read_lines(io.BytesIO(content), 1_000)) == list(enumerate(expected, 1))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=20))
def test_a_line_that_is_too_long_is_left_out_and_those_around_it_are_read(lengths):
    content = b"".join(b"x" * length + b"\n" for length in lengths)

    found = list(read_lines(io.BytesIO(content), 20))
    assert found == [(n, b"x" * length + b"\n" if length < 20 else None) for n, length in enumerate(lengths, 1)]


@on_storage("disk", "s3", "connection", "memory")
def test_lines_are_read_with_a_limit_from_every_storage(storage):
    long, many = b"x" * 3_000_000 + b"\n", [json_line({"n": n, "text": "\u2028" * 100}) for n in range(2_000)]
    path = storage_path("lines", "rows.jsonl")
    write_artifact(path, b"".join([*many[:10], long, *many[10:], b"the end"]))

    with path.open("rb") as file:
        found = [line for _, line in read_lines(file, 1_000)]
    assert found == [*many[:10], None, *many[10:], b"the end"]


class Endless(io.RawIOBase):
    """A line without an end, that counts what was read of it."""

    taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.taken += len(buffer)
        assert self.taken < 10_000_000
        buffer[:] = b"x" * len(buffer)
        return len(buffer)


def test_no_more_of_a_line_without_an_end_is_read_than_the_limit():
    assert next(read_lines(Endless(), 1_000_000)) == (1, None)


# ---- Any text, through everything


@on_storage("memory")
@any_examples()
@given(rows=st.lists(st.tuples(texts(), texts()), min_size=1, max_size=5), ascii_only=st.booleans())
def test_any_text_in_json_lines_is_one_row(storage, rows, ascii_only):
    path = storage_path("rows.jsonl")
    if ascii_only:
        content = b"".join(json.dumps({"name": name, "text": text}).encode() + b"\n" for name, text in rows)
    else:
        content = b"".join(json_line({"name": name, "text": text}) for name, text in rows)
    write_artifact(path, content)

    found = list(read_rows(path, "text", "name"))
    assert [(row.number, row.id) for row in found] == [
        (n, whole(name) or str(n)) for n, (name, _) in enumerate(rows, 1)
    ]
    for row, text in zip(found, (whole(text) for _, text in rows), strict=True):
        if text.strip():
            assert row.text == text
        else:
            assert row.error.endswith("is empty")


@on_storage("memory")
@any_examples()
@given(
    rows=st.lists(st.tuples(*[texts("\0", half_characters=False)] * 2), min_size=1, max_size=5),
    form=st.sampled_from(["csv", "parquet"]),
)
def test_any_text_in_csv_and_parquet_is_one_row(storage, rows, form):
    import pyarrow as pa
    from pyarrow import parquet

    file = io.BytesIO()
    if form == "csv":
        out = io.StringIO(newline="")
        csv.writer(out, quoting=csv.QUOTE_ALL).writerows([("name", "text"), *rows])
        file.write(out.getvalue().encode())
    else:
        parquet.write_table(pa.table({"name": [n for n, _ in rows], "text": [t for _, t in rows]}), file)
    path = storage_path(f"rows.{form}")
    write_artifact(path, file.getvalue())

    expected = [(name or str(n), text if text.strip() else None) for n, (name, text) in enumerate(rows, 1)]
    assert [(row.id, row.text) for row in read_rows(path, "text", "name")] == expected


class Said(BaseModel):
    what: str


@on_storage("memory")
@any_examples(30)
@given(said=st.lists(st.tuples(texts(), texts(), texts()), min_size=1, max_size=4))
def test_any_text_comes_through_chunk_journal_and_results(storage, said):
    rows = [Row(n, name, text) for n, (name, text, _) in enumerate(said, 1)]
    results = [Result(n, name, {"what": answer}, calls=1) for n, (name, _, answer) in enumerate(said, 1)]
    folder = storage_path("chunks")
    ((name, _),) = write_chunks(rows, "settings", folder, 1)
    for path in (folder / name).iterdir():
        if path.name != "rows.jsonl":
            path.fs.rm(path.path, recursive=True)  # an example that hypothesis repeats has been completed before
    chunk = Chunk(folder / name)
    assert chunk.rows() == [Row(n, joined(i), joined(t)) for n, i, t, *_ in rows]

    asyncio.run(note_all(chunk, results))
    expected = [replace(r, id=joined(r.id), answer={"what": joined(r.answer["what"])}) for r in results]
    again = Chunk(folder / name)
    assert sorted(again.recall(), key=lambda result: result.row) == expected
    again.complete(rows)
    assert Chunk(folder / name).so_far() == (expected, True)

    file = io.BytesIO()
    with results_writer(".jsonl", Said, file) as write:
        write(results)
    shown = [json.loads(line) for line in file.getvalue().split(b"\n")[:-1]]
    assert shown == [{name: getattr(result, name) for name in COLUMNS} for result in expected]


class Found(BaseModel):
    number: int
    share: float
    is_sure: bool
    said: str
    parts: list[str]
    more: dict[str, int] | None


ANSWERS = st.fixed_dictionaries(
    {
        "number": st.integers() | st.integers(-(2**80), 2**80) | st.sampled_from([2**63 - 1, 2**63, -(2**63) - 1]),
        "share": st.floats(),
        "is_sure": st.booleans(),
        "said": texts(),
        "parts": st.lists(texts(), max_size=2),
        "more": st.none() | st.dictionaries(texts(), st.integers(), max_size=2),
    }
)


@any_examples()
@given(answers=st.lists(st.none() | ANSWERS, min_size=1, max_size=4), name=texts(), error=texts())
def test_the_results_are_written_whatever_the_answers_hold(answers, name, error):
    results = [Result(n, name, answer, error, "" if answer else "refused") for n, answer in enumerate(answers, 1)]
    lines, table = io.BytesIO(), io.BytesIO()
    for suffix, file in ((".jsonl", lines), (".parquet", table)):
        with results_writer(suffix, Found, file) as write:
            write(results)

    from pyarrow import parquet

    shown = [json.loads(line) for line in lines.getvalue().split(b"\n")[:-1]]
    for row, flat in zip(shown, parquet.read_table(table).to_pylist(), strict=True):
        assert (flat["row"], flat["id"], flat["error_class"]) == (row["row"], whole(name), row["error_class"])
        if row["answer"] is None:
            assert (flat["answer"], flat["error"]) == (None, whole(error))
            continue
        answer, number = flat["answer"], row["answer"]["number"]
        if -(2**63) <= number < 2**63:
            assert (answer["number"], flat["error"]) == (number, whole(error))
        else:
            assert answer["number"] is None
            assert flat["error"].endswith(f"number does not fit its column: {number}")
        assert repr(answer["share"]) == repr(row["answer"]["share"])
        assert (answer["is_sure"], answer["said"]) == (row["answer"]["is_sure"], whole(row["answer"]["said"]))
        assert json.loads(answer["parts"]) == list(map(whole, row["answer"]["parts"]))


@any_examples()
@given(text=texts(), name=texts(), echo=texts())
def test_any_text_in_a_message_of_kafka_is_an_event_that_every_database_stores(text, name, echo):
    given = {"version": 1, "request_id": name, "text": text, "reply": {"wanted": True, "echo": echo}}
    message = Message(json.dumps(given | {"sent_at": "2026-01-01T00:00:00Z"}).encode())
    event = parse_message(message)

    stored = json.dumps(event)
    assert clean_json(stored) == stored
    if event["request"]:
        assert (event["request"]["text"], event["request"]["reply"]["echo"]) == (joined(text), joined(echo))


@given(said=st.lists(texts(), min_size=20, max_size=20))
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_text_comes_through_an_xcom(run_any_dag, said):
    said = [clean_text(text) for text in said]

    @dag(schedule=None)
    def any_text():
        @task
        def say() -> list[str]:
            return said

        @task
        def hear(heard: list[str]) -> bool:
            return heard == said

        hear(say())

    run = run_any_dag(any_text())
    assert run.xcom("hear") is True


async def note_all(chunk: Chunk, results: list[Result]) -> None:
    await asyncio.gather(*map(chunk.note, results))


def joined(text: str) -> str:
    """The text as JSON gives it back: a pair of half characters is one, a single one stays."""
    return str(json.loads(json.dumps(text)))


@on_storage("memory")
@any_examples(30)
@given(
    asked=st.lists(
        st.tuples(texts(), texts(), texts()), min_size=1, max_size=4, unique_by=lambda each: clean_text(each[0])
    )
)
def test_any_text_comes_through_the_requests_and_answers_of_a_batch(storage, asked):
    asked = [(clean_text(name) + "!", question, answer) for name, question, answer in asked]
    bodies = [{"model": "m", "messages": [{"role": "user", "content": question}]} for _, question, _ in asked]
    path, upload, raw, out = (storage_path(f"{name}.jsonl") for name in ("in", "upload", "raw", "out"))
    requests = [{"custom_id": each[0], "body": body} for each, body in zip(asked, bodies, strict=True)]
    write_artifact(path, b"".join(map(json_line, requests)))
    names = check_requests(path)
    assert list(names.values()) == [each[0] for each in asked]
    write_upload(upload, path, names.keys())
    assert [json.loads(line)["custom_id"] for line in upload.read_bytes().split(b"\n")[:-1]] == list(names)

    replies = [{"status_code": 200, "body": {"said": answer}} for _, _, answer in asked]
    lines = [{"custom_id": name, "response": reply} for name, reply in zip(names, replies, strict=True)]
    write_artifact(raw, b"".join(map(json_line, lines)))
    with closing(Answers(names)) as answers:
        answers.add(raw)
        assert answers.write(out) == {"answered": len(asked), "failed": 0}
    with out.open("rb") as file:
        found = [json.loads(line or b"") for _, line in read_lines(file, 10_000)]
    assert [(each["custom_id"], each["response"]["said"]) for each in found] == [(n, joined(a)) for n, _, a in asked]


@on_storage("memory")
@any_examples(30)
@given(said=st.lists(texts(), max_size=5), one=texts())
def test_any_text_comes_through_feedback_and_artifacts(storage, said, one):
    path = storage_path("feedback.jsonl")
    write_artifact(path, b"".join(json_line({"text": text}) for text in said))
    assert read_texts([path]) == [clean_text(text) for text in said]

    write_artifact(path, one)
    assert path.read_bytes() == one.encode("utf-8", "backslashreplace")


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_an_example_with_a_line_separator_is_one_example(sign):
    example = conversation(99)
    example["messages"][0]["content"] += f"before{sign}after"
    checked = check("t.jsonl", file_of([*lines(), json.dumps(example, ensure_ascii=False).encode()]))
    assert (checked.problems, checked.examples) == ([], len(lines()) + 1)
