"""What the project's storage costs on S3: each promise takes as many requests as docs/growing.md says."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models import ModelRequestParameters

from include.ai import reuse
from include.ai.attempt import TaskAttempt
from include.ai.connection import ModelSource
from include.batch.chunks import Chunk, write_chunks
from include.batch.rows import Result, Row
from include.common.storage import read_artifact, storage_path, write_artifact
from include.common.stored_files import new_artifact
from include.jobs import record
from include.messages import answers, stored
from include.messages.contract import new_request
from include.rag.documents import listed_documents, read_document
from tests.conftest import PROJECT
from tests.storages import on_storage, s3_requests

MB = 1_000_000
ANY_FORM = ModelRequestParameters()
ROWS = [Row(number, str(number), "Text.") for number in range(1, 101)]


def of_the_docs() -> dict[str, int]:
    doc = (PROJECT / "docs" / "growing.md").read_text(encoding="utf-8")
    table = doc.partition("| on S3 | requests |")[2].partition("\n\n")[0]
    return {what: int(number) for what, number in re.findall(r"^\| (.+?) \| (\d+) \|$", table, re.MULTILINE)}


def build(size: int) -> None:
    with new_artifact(storage_path("built.jsonl")) as file:
        file.write(b"x" * size)


def chunk() -> Chunk:
    ((name, _),) = write_chunks(ROWS, "settings", storage_path("batch"), 1)
    return Chunk(storage_path("batch") / name)


def answer(batch: Chunk, number: int) -> None:
    asyncio.run(batch.note(Result(number, str(number), {"label": "x"}, calls=1)))


def an_answer() -> None:
    ti = SimpleNamespace(id="one", dag_id="d", run_id="r", task_id="t", map_index=None, try_number=1, max_tries=0)
    attempt = TaskAttempt({"ti": ti, "dag_run": SimpleNamespace(start_date=None)})
    source = ModelSource("conn", "openai-chat:m", {}, {})
    call = reuse.Call(attempt, reuse.RETRIES, [source], [ModelRequest([UserPromptPart("A")])], None, ANY_FORM)
    assert asyncio.run(call.recall()) is None
    asyncio.run(call.keep(source, ModelResponse([TextPart("B")])))


async def yes(_: str) -> str:
    return "Yes."


def answer_message(*ids: str) -> None:
    """Answer messages with these ids, as one batch."""
    batch = answers.RequestAnswers("stream", SimpleNamespace(ask=yes))  # type: ignore[arg-type]
    for request_id in ids:
        reply = asyncio.run(batch.reply(new_request("Hello?", request_id), "the message"))
        assert reply is not None and reply.answer == "Yes."  # noqa: PT018


def large_message() -> stored.Pointer:
    return stored.store("requests", stored.StoredMessage(value=b"x" * MB))


def a_job() -> None:
    assert record.read_record("job") is None
    write_artifact(record.record_path("job"), "{}")


def a_chunk_without_its_rows(made: list[str]) -> int:
    """All of a chunk of a hundred rows but what the rows take."""
    first = chunk()
    assert first.so_far() == ([], False)
    first.rows()
    for row in ROWS:
        answer(first, row.number)
    first.complete(ROWS)
    return len(made) - len(ROWS)


def xcom(what: str) -> Any:
    from airflow.providers.common.io.xcom.backend import XComObjectStorageBackend as Backend

    if what == "write":
        return Backend.serialize_value("x" * MB, key="k", task_id="t", dag_id="d", run_id="r")
    return Backend.deserialize_value(type("Stored", (), {"value": what})())


@pytest.fixture
def large_xcoms(storage: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from airflow.providers.common.io.xcom import backend

    cached = [backend._get_base_path, backend._get_compression, backend._get_threshold]
    for name, value in {"PATH": f"{storage_path()}/xcom", "THRESHOLD": "1000", "COMPRESSION": "gzip"}.items():
        monkeypatch.setenv(f"AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_{name}", value)
    for each in cached:
        each.cache_clear()
    yield
    for each in cached:
        each.cache_clear()


@on_storage("connection")
def test_each_promise_takes_as_many_requests_as_the_docs_say(storage, large_xcoms, monkeypatch):
    monkeypatch.setenv("GENAI_KNOWLEDGE_BASE", f"{storage_path()}/handbook")
    for number in range(20):
        write_artifact(storage_path("handbook", f"{number}.md"), f"# Page {number}")
    batch, pointer, value = chunk(), large_message(), xcom("write")

    def count(do: Callable[[], Any]) -> int:
        with s3_requests() as made:
            do()
        return len(made)

    with s3_requests() as made:
        per_chunk = a_chunk_without_its_rows(made)
    assert of_the_docs() == {
        "an artifact, or a file of a run of up to 50 MB": count(lambda: write_artifact(storage_path("a.json"), "{}")),
        "a file of 60 MB": count(lambda: build(60 * MB)),
        "an answer of a model, to store it": count(an_answer),
        "a message answered by `stream_inference` or `sqs_inference`": count(lambda: answer_message("a")),
        "the same message again": count(lambda: answer_message("a")),
        "a message too large for its topic: to store it, and to read it": count(large_message)
        + count(lambda: stored.fetch(pointer.model_dump_json())),
        "a row of a batch, at most": count(lambda: answer(batch, 1)),
        "a chunk of a batch (500 rows) besides its rows": per_chunk,
        "a fine-tuning or Batch API job's record: to look for it, and to write it": count(a_job),
        "an XCom above the threshold: to write it": count(lambda: xcom("write")),
        "and each time that it is read": count(lambda: xcom(value)),
        "the list of a knowledge base, for each 1,000 documents": count(listed_documents),
        "a new or changed document": count(lambda: read_document("1.md")),
    }
    assert count(lambda: build(10)) == count(lambda: read_artifact(storage_path("built.jsonl"))) == 1


def test_the_messages_of_a_batch_share_an_opened_storage(storage, monkeypatch):
    """To open it costs more than to read or write an answer."""
    opened: list[tuple[str, ...]] = []

    def open_storage(*parts: str) -> ObjectStoragePath:
        opened.append(parts)
        return storage_path(*parts)

    monkeypatch.setattr(answers, "storage_path", open_storage)
    answer_message("a", "b", "c", "a")
    assert len(opened) == 1
