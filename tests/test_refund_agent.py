"""The DAG `refund_agent`, and tools with an effect: each runs once, whatever is killed."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import dag, task
from pydantic import BaseModel
from pydantic_ai import ModelRetry, RunContext

from include.ai import untrusted
from include.ai.agents import agent_kwargs
from include.ai.attempt import TaskAttempt
from include.ai.effects import UNKNOWN, effect, effect_key
from include.sample.refunds import written
from tests.conftest import chat_requests
from tests.killing import kill_tries

DATE = datetime(2026, 1, 2, tzinfo=UTC)
OUTCOME = {"summary": "The money is paid back.", "needs_a_person": False}
LETTER = "Your 149 EUR are on their way.\n\n![now](https://example.com/x.png)"
REFUND = {"amount_eur": 149, "reason": "It was lost."}


def script(llm: Any) -> None:
    llm.call_tool("look_up_order", {}).call_tool("refund", REFUND)
    llm.call_tool("write_to_customer", {"text": LETTER}).call_tool("final_result", OUTCOME)


def lying(storage: Any, folder: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (storage / "refund_agent" / folder).rglob("*.json")]


def results(llm: Any) -> list[str]:
    """What the tools said, as the model got it with its last question."""
    return [message["content"] for message in chat_requests(llm)[-1]["messages"] if message["role"] == "tool"]


def test_an_agent_looks_up_pays_and_writes_and_the_report_says_what_was_really_done(run_dag, llm, storage):
    script(llm)
    run = run_dag("refund_agent")

    assert run.state == "success"
    (refund,), (letter,) = lying(storage, "refunds"), lying(storage, "letters")
    assert (refund["amount_eur"], refund["reason"]) == (149.0, "It was lost.")
    assert letter["text"] == LETTER
    assert run.xcom("report")["result"] == "KF-1002: 1 refunds, 1 letters"
    (report,) = (storage / "refund_agent").rglob("report.md")
    assert refund["said"] in report.read_text()
    assert "> Your 149 EUR are on their way.\n> \n> !\\[now\\](" in report.read_text()


def test_a_refund_is_not_read_from_a_file_that_a_killed_worker_left_half_written(storage):
    folder = storage / "refund_agent" / "refunds" / "KF-1002"
    folder.mkdir(parents=True)
    (folder / "000.json").write_text('{"amount_eur": 49}')
    (folder / "0f0f.part").write_text('{"amount_eur": 49}')
    assert written("refunds", "KF-1002") == [{"amount_eur": 49}]


KILLS = {
    "after each answer": [1, 2, 3],
    "after the last answer, and before the XCom": [4, "end", "end"],
    "around the payment": [("before", "refund"), ("after", "refund"), "end"],
    "before the letter": [("before", "write_to_customer"), "end"],
    "after the letter": [("after", "write_to_customer"), 4],
}


@pytest.mark.parametrize("kills", KILLS)
def test_an_agent_that_is_killed_at_any_step_neither_pays_nor_acts_twice(run_dag, llm, storage, monkeypatch, kills):
    script(llm)
    kill_tries(monkeypatch, {"handle_request": KILLS[kills]})
    run = run_dag("refund_agent")

    assert run.state == "success"
    assert run.task_instance("handle_request").try_number == len(KILLS[kills]) + 1
    assert len(chat_requests(llm)) == 4
    assert len(lying(storage, "refunds")) == 1
    assert len(lying(storage, "letters")) == (kills != "before the letter")
    assert (UNKNOWN in results(llm)) == ("the letter" in kills)


def test_more_than_was_paid_is_never_paid_back(run_dag, llm, storage):
    llm.call_tool("refund", {"amount_eur": 100, "reason": "Lost."}).call_tool("refund", REFUND)
    llm.call_tool("refund", {"amount_eur": 49, "reason": "Lost."}).call_tool("final_result", OUTCOME)
    run = run_dag("refund_agent")

    assert run.state == "success"
    assert sorted(refund["amount_eur"] for refund in lying(storage, "refunds")) == [49, 100]
    assert "at most 49.0 EUR" in json.dumps(chat_requests(llm)[2])


# Any tool with an effect

ran: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


class Booking(BaseModel):
    room: str
    day: datetime


def book(room: str) -> Booking:
    """Book a room."""
    ran.append((room, effect_key()))
    return Booking(room=room, day=DATE)


async def book_later(ctx: RunContext[None], room: str) -> Booking:
    """Book a room."""
    return book(room)


def run_agent(run_any_dag: Any, *tools: Any, fails: int = 1) -> Any:
    """Run an agent with these tools, whose worker loses the result so often."""

    @dag(schedule=None, start_date=DATE)
    def agents():
        @task.agent(**agent_kwargs(system_prompt="Be brief.", tools=tools))
        def answer():
            return untrusted("Hello")

        answer()

    built = agents()
    operator = built.get_task("answer")

    def lose(context: Any, result: Any) -> None:
        if context["ti"].try_number <= fails:
            raise RuntimeError("The result is lost.")

    operator._post_execute_hook = lose
    return run_any_dag(built)


@pytest.mark.parametrize("tool", [book, book_later])
def test_a_tool_with_an_effect_runs_once_and_its_retry_gets_the_same_result(run_any_dag, llm, storage, tool):
    llm.call_tool(tool.__name__, {"room": "A1"}).reply("done")
    run = run_agent(run_any_dag, effect(tool), fails=2)

    assert run.xcom("answer") == "done"
    assert [room for room, _ in ran] == ["A1"]
    assert len(chat_requests(llm)) == 2
    assert json.loads(results(llm)[0]) == {"room": "A1", "day": "2026-01-02T00:00:00Z"}
    (offered,) = chat_requests(llm)[0]["tools"]
    assert offered["function"]["description"] == "Book a room."
    assert list(offered["function"]["parameters"]["properties"]) == ["room"]


def test_a_cleared_task_does_its_effects_again_with_the_keys_of_before(storage, monkeypatch):
    def attempt(**changes: Any) -> TaskAttempt:
        where = {"id": "one", "dag_id": "d", "run_id": "r", "task_id": "t", "map_index": None, "try_number": 1}
        where |= {"max_tries": 3, **changes}
        return TaskAttempt({"ti": SimpleNamespace(**where), "dag_run": SimpleNamespace(start_date=DATE)})

    for now in (attempt(), attempt(id="two", try_number=2), attempt(id="three", try_number=3, max_tries=5)):
        monkeypatch.setattr("include.ai.effects.this_attempt", lambda now=now: now)
        asyncio.run(effect(book)("A1"))

    assert [room for room, _ in ran] == ["A1", "A1"]
    assert len({key for _, key in ran}) == 1


def test_the_same_effect_twice_runs_twice_with_two_keys(run_any_dag, llm, storage):
    llm.call_tool("book", {"room": "A1"}).call_tool("book", {"room": "A1"}).reply("done")
    run_agent(run_any_dag, effect(book))

    assert [room for room, _ in ran] == ["A1", "A1"]
    assert len({key for _, key in ran}) == 2


def test_a_tool_without_an_effect_runs_again_in_each_try(run_any_dag, llm, storage):
    llm.call_tool("book", {"room": "A1"}).reply("done")
    run_agent(run_any_dag, book)

    assert ran == [("A1", "")] * 2
    assert len(chat_requests(llm)) == 2


def test_a_tool_that_asks_the_model_for_other_arguments_has_had_no_effect(run_any_dag, llm, storage):
    def book_free(room: str) -> str:
        """Book a room."""
        ran.append(room)
        if ran == ["A1"]:
            raise ModelRetry("It is taken.")
        return "booked"

    llm.call_tool("book_free", {"room": "A1"}).call_tool("book_free", {"room": "A1"}).reply("done")
    run = run_agent(run_any_dag, effect(book_free), fails=0)

    assert run.xcom("answer") == "done"
    assert ran == ["A1", "A1"]
    assert results(llm)[-1] == "booked"


def test_after_an_error_nobody_knows_and_the_retry_says_so_to_the_model(run_any_dag, llm, storage):
    def break_down(room: str) -> str:
        """Book a room."""
        ran.append(room)
        raise ConnectionError("The line broke.")

    llm.call_tool("break_down", {"room": "A1"}).reply("It is unknown.")
    run = run_agent(run_any_dag, effect(break_down), fails=0)

    assert run.xcom("answer") == "It is unknown."
    assert ran == ["A1"]
    assert results(llm) == [UNKNOWN]


@pytest.mark.parametrize("content", ["", "{", '{"tool": 7}'])
def test_a_note_that_cannot_be_read_counts_as_begun(run_any_dag, llm, storage, content):
    def lose_note(room: str) -> str:
        """Book a room."""
        ran.append(room)
        (note,) = (storage / "stored_answers").rglob("effect-*.json")
        note.write_text(content)
        raise ConnectionError("The line broke.")

    llm.call_tool("lose_note", {"room": "A1"}).reply("It is unknown.")
    run_agent(run_any_dag, effect(lose_note), fails=0)

    assert ran == ["A1"]
    assert results(llm) == [UNKNOWN]


def test_without_a_note_on_the_storage_nothing_is_done(run_any_dag, llm, storage, monkeypatch, logged):
    fail = [OSError("The disk is full.")]

    def create(*_: Any) -> bool:
        if fail:
            raise fail.pop()
        return True

    monkeypatch.setattr("include.ai.effects.create_file", create)
    llm.call_tool("book", {"room": "A1"}).reply("done")
    run = run_agent(run_any_dag, effect(book), fails=0)

    assert run.xcom("answer") == "done"
    assert run.task_instance("answer").try_number == 2
    assert [room for room, _ in ran] == ["A1"]
    assert "The tool 'book' has not run" in logged()


def test_outside_a_task_a_tool_just_runs(storage):
    assert asyncio.run(effect(book)("A1")) == Booking(room="A1", day=DATE)
    assert ran == [("A1", "")]
