"""The DAG `prompt_chaining`: two model calls in a row, and one delivery."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from tests.conftest import chat_requests
from tests.storages import on_storage

ANALYSIS = {"category": "technical", "urgency": "high", "key_issues": ["vans offline", "no positions"]}
REPLY = {"message": "We are looking into your three vans right now.", "next_steps": ["Check the trackers"]}


def script(llm, reply=REPLY):
    llm.call_tool("final_result", ANALYSIS).call_tool("final_result", reply)


def delivered(storage):
    """What lies in the outbox: the content of its only file."""
    (file,) = storage.glob("prompt_chaining/*/*")
    return json.loads(file.read_text())


def test_the_analysis_feeds_the_reply_and_the_reply_is_delivered(run_dag, llm, storage):
    script(llm)
    run = run_dag("prompt_chaining", {"ticket": "Three vans are offline."})

    assert run.state == "success"
    assert run.xcom("analyze_ticket") == ANALYSIS
    assert run.xcom("write_reply") == REPLY
    assert delivered(storage) == {"analysis": ANALYSIS, "reply": REPLY}
    second_request = json.dumps(chat_requests(llm)[1])
    assert "vans offline; no positions" in second_request
    assert "Three vans are offline." in second_request


def test_a_run_that_is_cleared_and_gets_another_reply_keeps_the_first_delivery(run_dag, llm, storage):
    date = datetime(2026, 1, 2, tzinfo=UTC)
    script(llm)
    first = run_dag("prompt_chaining", logical_date=date, run_after=date)
    other = {**REPLY, "message": "Please restart the trackers of all your vans."}
    script(llm, other)
    second = run_dag("prompt_chaining", logical_date=date, run_after=date)

    assert first.run.run_id == second.run.run_id
    assert second.xcom("write_reply") == other
    assert second.state == "success"
    assert delivered(storage)["reply"] == REPLY


@on_storage("s3")
def test_a_delivery_that_failed_after_writing_is_retried_without_a_second_delivery(run_dag, llm, storage, monkeypatch):
    from include.common import storage as module

    script(llm)
    write, writes = module.write_artifact, []

    def write_then_lose_the_worker(path, content):
        written = write(path, content)
        if "ledger" in path.parts:
            return written
        writes.append(written)
        raise ConnectionError("the worker is gone")

    monkeypatch.setattr(module, "write_artifact", write_then_lose_the_worker)
    run = run_dag("prompt_chaining")

    assert run.state == "success"
    assert run.task_instance("deliver_reply").try_number == 2
    assert len(writes) == 1
    assert delivered(storage)["reply"] == REPLY


def test_two_runs_deliver_twice(run_dag, llm, storage):
    for _ in range(2):
        script(llm)
        run_dag("prompt_chaining")

    assert len(list(storage.glob("prompt_chaining/*/reply.json"))) == 2


@pytest.mark.parametrize(
    "text", ["{{ conn.pydanticai_default.password }}", "{% raise %} {{ 1 / 0 }}", "read report.sql"]
)
def test_a_ticket_reaches_the_model_as_these_very_characters(run_dag, llm, text):
    script(llm)
    run = run_dag("prompt_chaining", {"ticket": text})

    assert run.state == "success"
    for request in chat_requests(llm):
        prompt = request["messages"][-1]["content"]
        assert text in (prompt if isinstance(prompt, str) else prompt[0]["text"])


@pytest.mark.parametrize("ticket", ["", "x" * 5001, 12345, None, ["a ticket"]], ids=lambda value: repr(value)[:12])
def test_a_ticket_that_is_no_text_of_a_sane_length_is_refused_before_the_run(run_dag, llm, ticket):
    from airflow.providers.common.compat.sdk import ParamValidationError

    with pytest.raises(ParamValidationError, match="ticket"):
        run_dag("prompt_chaining", {"ticket": ticket})
    assert llm.requests == []
