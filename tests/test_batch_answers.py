"""Rows answered many at once: kept rates, refused calls, a killed worker, two workers, a provider that is down."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Literal

import pytest
from airflow.providers.common.compat.sdk import AirflowException
from airflow.sdk import ObjectStoragePath

from include.ai import BaseModel, account, rate_limit
from include.batch import answering as batch_answers
from include.batch import chunks as batch_chunks
from include.batch.answering import Answering
from include.batch.chunks import Chunk, write_chunks
from include.batch.rows import Result, Row
from include.common.storage import storage_path
from tests.conftest import PROJECT
from tests.stack import wait_until
from tests.storages import on_storage
from tests.virtual_time import VirtualTime

pytestmark = pytest.mark.one_stack

SENTIMENTS = ("positive", "negative", "neutral")
AT_ONCE = 8


class Labels(BaseModel):
    sentiment: Literal["positive", "negative", "neutral"]


def work(rows: int, text: str = "review", folder: str = "rows") -> tuple[Answering, list[Chunk]]:
    """A worker's work on so many rows, and its chunks."""
    texts = [Row(n + 1, str(n + 1), f"{text} {n}") for n in range(rows)]
    chunks = [Chunk(storage_path(folder) / name) for name, _ in write_chunks(texts, "", storage_path(folder), 1)]
    answering = Answering(chunks, rows, system_prompt="Label.", output_type=Labels, at_once=AT_ONCE, budget_usd=None)
    return answering, chunks


def answer(rows: int, text: str = "review") -> list[Result]:
    """Answer so many rows in this process, and return the results in order."""
    answering, chunks = work(rows, text)
    asyncio.run(answering.run())
    return [result for chunk in chunks for result in chunk.results() or []]


def assert_right(results: list[Result], rows: int) -> None:
    assert [(result.row, result.answer) for result in results] == [
        (n + 1, {"sentiment": SENTIMENTS[n % 3]}) for n in range(rows)
    ]


# Paid once


@pytest.mark.parametrize("after", [1, 100])
def test_a_killed_worker_goes_on_where_it_stopped_and_at_most_the_calls_in_flight_are_paid_twice(model, after):
    model.script(latency=0.02)
    settings = {name: os.environ[name] for name in ("AIRFLOW_CONN_PYDANTICAI_DEFAULT", "GENAI_STORAGE")}
    code = f"import os; from tests.test_batch_answers import answer; os.environ |= {settings}; answer(150)"
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], cwd=PROJECT) as worker:
        wait_until(lambda: len(model.seen()) >= after, timeout=240)
        worker.kill()
    results = answer(150)

    assert_right(results, 150)
    calls = model.calls()
    twice = sum(count - 1 for count in calls.values())
    assert len(calls) == 150
    assert twice <= AT_ONCE
    assert answer(150) == results
    assert model.calls() == calls, "what was finished is not paid again"


def test_a_line_that_a_kill_has_cut_short_does_not_count(model):
    answering, (chunk,) = work(10)
    journal = chunk.folder / "journal"
    journal.mkdir(parents=True)
    (journal / "killed.jsonl").write_text('{"row": 1, "id": "1", "answer": {"sentiment": "neutral"}}\n{"row": 2, "an')
    asyncio.run(answering.run())

    results = chunk.results() or []
    assert results[0].answer == {"sentiment": "neutral"}, "a stored answer is not asked for again"
    assert results[1].answer == {"sentiment": "negative"}
    assert "review 0" not in model.calls()


def test_a_journal_that_another_worker_has_just_emptied_tells_nothing(storage):
    _, (chunk, *_) = work(5)
    (chunk.folder / "journal").mkdir()
    assert chunk.recall() == []


@on_storage("disk", "s3")
def test_two_workers_on_the_same_rows_at_once_do_no_harm(model):
    model.script(latency=0.01)
    (one, chunks), (two, _) = work(60), work(60)

    async def both() -> None:
        await asyncio.gather(one.run(), two.run())

    asyncio.run(both())
    assert_right(chunks[0].results() or [], 60)


def test_a_journal_that_another_worker_has_just_dropped_loses_nothing(model, monkeypatch):
    answering, chunks = work(20)
    mkdir, dropped = ObjectStoragePath.mkdir, []

    def drop_after_mkdir(path, *arguments, **more):
        mkdir(path, *arguments, **more)
        if path.name == "journal" and not dropped:
            dropped.append(path)
            path.fs.rm(path.path, recursive=True)

    monkeypatch.setattr(ObjectStoragePath, "mkdir", drop_after_mkdir)
    asyncio.run(answering.run())
    assert dropped
    assert_right(chunks[0].results() or [], 20)


def test_a_storage_that_fails_ends_the_try_and_at_most_the_calls_in_flight_are_paid_twice(model, monkeypatch):
    written, write = [], batch_chunks._write

    def full(path, content):
        if len(written) == 5:
            raise OSError("no space left")
        written.append(content)
        write(path, content)

    monkeypatch.setattr(batch_chunks, "_write", full)
    answering, _ = work(60)
    with pytest.raises(OSError, match="no space left"):
        asyncio.run(answering.run())

    noted = sum(content.count(b"\n") for content in written)
    assert noted <= len(model.calls()) <= noted + AT_ONCE


# Rates


def most_within(times: list[float], seconds: float) -> int:
    return max(sum(start <= each < start + seconds for each in times) for start in times)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When requests were let go, on a clock that only their waiting moves."""
    VirtualTime(monkeypatch, rate_limit)
    monkeypatch.setattr(account, "time", rate_limit.time)
    times: list[float] = []
    turn = rate_limit.RateLimit._turn

    async def noted(self: rate_limit.RateLimit, tokens: float) -> float:
        times.append(await turn(self, tokens))
        return times[-1]

    monkeypatch.setattr(rate_limit.RateLimit, "_turn", noted)
    return times


def test_tokens_per_minute_are_kept_once_an_answer_has_told_its_tokens(model, monkeypatch, turns):
    monkeypatch.setattr(sys.modules[__name__], "AT_ONCE", 1)  # each answer comes before the next request
    ten_calls_a_second = model.connection(tokens_per_minute=10 * 110 * 60)
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", ten_calls_a_second)
    answer(60)

    assert len(turns) == len(model.seen()) == 60
    assert 25 <= most_within(turns[10:], 3.0) <= 30
    assert turns[-1] - turns[0] < 12, "much slower than allowed"


def test_refused_calls_are_waited_out_and_none_is_lost(model):
    model.script(refuse=0.1, latency=0.01)
    assert_right(answer(100), 100)

    seen = model.seen()
    refused = [each for each in seen if each["status"] == 429]
    assert len(refused) >= 10
    for refusal in refused:
        again = [e["time"] for e in seen if e["text"] == refusal["text"] and e["time"] > refusal["time"]]
        assert min(again) - refusal["time"] >= 0.9, "not as long as Retry-After asks"


def test_a_provider_that_is_down_fails_the_try_soon_and_pays_nothing_twice_when_it_is_back(model, monkeypatch):
    monkeypatch.setattr(batch_answers, "PAUSES_S", ())
    with pytest.raises(AirflowException, match=r"10 consecutive rows got no answer; the last: .*503.* A retry goes on"):
        answer(60, "review DOWN")
    assert len(model.calls()) < 30


def test_a_row_that_the_provider_cannot_answer_is_left_for_the_retry_and_the_others_are_kept(model, monkeypatch):
    monkeypatch.setattr(batch_answers, "PAUSES_S", ())
    texts = [Row(n, str(n), "review DOWN" if n == 3 else f"review {n}") for n in range(1, 12)]
    ((name, rows),) = write_chunks(texts, "", storage_path("rows"), 1)

    for _ in range(2):
        chunk = Chunk(storage_path("rows") / name)
        answering = Answering([chunk], rows, system_prompt="Label.", output_type=Labels, at_once=4, budget_usd=None)
        with pytest.raises(AirflowException, match="1 rows are without an answer"):
            asyncio.run(answering.run())
        assert {result.row for result in Chunk(chunk.folder).recall()} == set(range(1, 12)) - {3}
    assert {count for text, count in model.calls().items() if "DOWN" not in text} == {1}


def test_a_refused_key_ends_the_try_at_once(model, monkeypatch, llmock):
    llmock.fail(401, times=None)
    connection = json.loads(model.connection()) | {"host": llmock.base_url()}
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", json.dumps(connection))
    with pytest.raises(AirflowException, match="the key was refused"):
        answer(60)
    assert len(llmock.requests) <= AT_ONCE
