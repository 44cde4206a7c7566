"""Ask once, pay once: what a task finds of the answers that its earlier tries, or others, have paid."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import chain, dag, get_current_context, task
from pydantic_ai import Agent
from pydantic_ai.messages import BinaryContent, FilePart, ModelResponse, TextPart

from include.ai import BaseModel, llm_kwargs, untrusted
from include.ai.agents import agent_kwargs
from include.ai.asking import Asking
from include.ai.attempt import TaskAttempt
from include.ai.layers import layered_model
from include.ai.limited_model import LimitedModel, TaskUsage
from include.ai.model import connection_model
from include.ai.reuse import StoredAnswer
from include.common.task_defaults import DEFAULT_ARGS
from tests.conftest import chat_requests, model_connection
from tests.killing import kill_tries
from tests.storages import on_storage
from tests.test_ledger import records

DATE = datetime(2026, 1, 2, tzinfo=UTC)
SAME_RUN = {"logical_date": DATE, "run_after": DATE}


class Verdict(BaseModel):
    fits: bool


def questions(llm: Any) -> list[str]:
    """What the model was asked, in order: all that a request says."""
    return [json.dumps(request["messages"]) for request in chat_requests(llm)]


def assert_nothing_was_asked_twice(llm: Any) -> None:
    asked = questions(llm)
    assert len(set(asked)) == len(asked)


def asking(*texts: str, reuse: Any = "retries", fails: int = 0, **settings: Any) -> Any:
    """A DAG whose only task asks these one after the other, and fails so often after the last answer."""

    @dag(schedule=None, start_date=DATE, default_args=DEFAULT_ARGS)
    def asks():
        @task(retries=3)
        def ask():
            agent = Agent(connection_model("pydanticai_default", reuse=reuse), **settings)
            runs = [agent.run_sync(text) for text in texts]
            if get_current_context()["ti"].try_number <= fails:
                raise RuntimeError("It fails after the answers.")
            return [[run.output, (run.all_messages()[-1].metadata or {}).get("reused_from")] for run in runs]

        ask()

    return asks()


def outputs(run: Any) -> list[str]:
    assert run.state == "success"
    return [output for output, _ in run.xcom("ask")]


@on_storage("disk", "s3", "memory")
def test_a_retry_gets_the_answers_of_the_tries_before_it_and_pays_nothing(run_any_dag, llm, storage, logged):
    llm.reply("The first answer.").reply("The second answer.")
    run = run_any_dag(asking("One?", "Two?", fails=2))

    assert outputs(run) == ["The first answer.", "The second answer."]
    assert run.task_instance("ask").try_number == 3
    assert len(questions(llm)) == 2
    assert_nothing_was_asked_twice(llm)
    for _, origin in run.xcom("ask"):
        assert (origin["task_id"], origin["try_number"], origin["conn_id"]) == ("ask", 1, "pydanticai_default")
        assert datetime.fromisoformat(origin["answered_at"])
    assert "answer." not in logged()


def test_what_was_saved_stands_in_the_usage_and_in_the_ledger(run_any_dag, llm, storage):
    llm.reply("An answer.")
    run = run_any_dag(asking("One?", fails=1))

    first, second = (record.lines[0] for record in records())
    assert (first.calls, first.reused, first.saved_usd) == (1, 0, 0)
    assert first.cost_usd > 0
    assert (second.calls, second.reused, second.cost_usd, second.unpriced) == (0, 1, 0, 0)
    assert second.saved_usd == first.cost_usd
    assert (second.model, second.prompt) == (first.model, first.prompt)
    usage = run.xcom("ask", "llm_usage")
    assert (usage["requests"], usage["input_tokens"], usage["cost_usd"]) == (0, 0, 0)
    assert (usage["reused"], usage["saved_usd"]) == (1, first.cost_usd)


def test_a_run_that_is_made_anew_asks_anew_also_in_its_retries(run_any_dag, llm, storage):
    llm.reply("The first answer.").reply("The second answer.")
    once = run_any_dag(asking("One?", fails=1), **SAME_RUN)
    assert outputs(once) == ["The first answer."]
    again = run_any_dag(asking("One?", fails=2), **SAME_RUN)

    assert again.run.run_id == once.run.run_id
    assert outputs(again) == ["The second answer."]
    assert len(questions(llm)) == 2


def test_a_retry_looks_where_the_tries_before_it_did_and_a_cleared_task_elsewhere(storage):
    def folder(**changes: Any) -> str:
        where = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": None, "max_tries": 3, "started": DATE}
        where |= {"id": "one", "try_number": 1, **changes}
        run = SimpleNamespace(start_date=where.pop("started"))
        return str(TaskAttempt({"ti": SimpleNamespace(**where), "dag_run": run}).of_task)

    first = folder()
    assert folder(id="two", try_number=2) == first
    for change in (
        {"max_tries": 4, "try_number": 2},  # as a clear leaves it
        {"started": DATE + timedelta(seconds=1)},  # a run that was deleted and made anew
        {"map_index": 0},
        {"task_id": "t2"},
        {"run_id": "r2"},
        {"dag_id": "d2"},
    ):
        assert folder(**change) != first


def test_the_same_question_twice_in_a_task_gets_two_answers_and_a_retry_gets_both(run_any_dag, llm, storage):
    llm.reply("Heads.").reply("Tails.").reply("Heads again.")
    run = run_any_dag(asking("Toss a coin.", "Toss a coin.", "Toss a coin.", fails=1))

    assert outputs(run) == ["Heads.", "Tails.", "Heads again."]
    assert len(questions(llm)) == 3


def test_mapped_tasks_that_ask_the_same_get_their_own_answers(run_any_dag, llm, storage):
    def mapped():
        @task(retries=1)
        def ask(number):
            answer = Agent(connection_model("pydanticai_default")).run_sync("Toss a coin.").output
            if get_current_context()["ti"].try_number == 1:
                raise RuntimeError("It fails after the answer.")
            return answer

        ask.expand(number=[1, 2])

    llm.reply("Heads.").reply("Tails.")
    run = run_any_dag(dag(schedule=None, start_date=DATE)(mapped)())

    assert run.state == "success"
    assert {run.xcom("ask", map_index=n) for n in range(2)} == {"Heads.", "Tails."}
    assert len(questions(llm)) == 2


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "another prompt": ({"system_prompt": "Be brief."}, {}),
    "another setting": ({"model_settings": {"temperature": 0.5}}, {}),
    "another form": ({"output_type": list[str]}, {}),
    "another tool": ({"tools": [untrusted]}, {}),
    "another model": ({}, {"model": "openai-chat:gpt-6.1-terra"}),
    "another host": ({}, {"path": "/"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_answer_is_never_given_to_another_question(run_any_dag, llm, storage, monkeypatch, change):
    settings, connection = CHANGES[change]
    llm.reply("The first answer.")
    if "output_type" in settings:
        llm.call_tool("final_result", {"response": ["The second answer."]})
    else:
        llm.reply("The second answer.")
    run_any_dag(asking("One?", reuse=timedelta(days=1)))
    if connection:
        url, model = llm.base_url() + connection.get("path", ""), connection.get("model", "openai-chat:gpt-6-luna")
        monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", model_connection(url, model))
    run_any_dag(asking("One?", reuse=timedelta(days=1), **settings))

    assert len(questions(llm)) == 2


def test_an_answer_serves_all_tasks_of_a_run_or_all_runs_for_some_time_if_it_may(run_any_dag, llm, storage):
    def two_tasks():
        def question(try_number):
            return untrusted("Is it a van?")

        reuses = ["run", "run", timedelta(days=1), timedelta(days=1), "retries", "try"]
        chain(
            *(
                task.llm(**llm_kwargs(reuse=reuse), system_prompt="Answer.", task_id=f"ask_{number}")(question)(number)
                for number, reuse in enumerate(reuses)
            )
        )

    for answer in ("Of the run.", "Of the day.", "Of the task.", "Of the try.", "Run 2.", "Task 2.", "Try 2."):
        llm.reply(answer)
    first = run_any_dag(dag(schedule=None, start_date=DATE)(two_tasks)())
    second = run_any_dag(dag(schedule=None, start_date=DATE)(two_tasks)())

    def answers(run: Any) -> list[str]:
        return [run.xcom(f"ask_{number}") for number in range(6)]

    assert answers(first) == ["Of the run."] * 2 + ["Of the day."] * 2 + ["Of the task.", "Of the try."]
    assert answers(second) == ["Run 2."] * 2 + ["Of the day."] * 2 + ["Task 2.", "Try 2."]


def stored(storage: Any) -> list[Any]:
    return sorted(path for path in (storage / "stored_answers").rglob("*.json"))


def test_an_answer_that_is_too_old_is_asked_again_and_replaced(run_any_dag, llm, storage):
    llm.reply("The old answer.").reply("The new answer.")
    run_any_dag(asking("One?", reuse=timedelta(days=7)))
    (file,) = stored(storage)
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"answered_at": str(datetime.now(UTC) - timedelta(days=8))}))

    assert outputs(run_any_dag(asking("One?", reuse=timedelta(days=7)))) == ["The new answer."]
    assert outputs(run_any_dag(asking("One?", reuse=timedelta(days=7)))) == ["The new answer."]
    assert stored(storage) == [file]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"answered_at": "2026-01-01"}', '"\\udc00"', "null"])
def test_a_stored_answer_that_cannot_be_read_is_asked_again(run_any_dag, llm, storage, content):
    llm.reply("The first answer.").reply("The second answer.")
    run_any_dag(asking("One?", reuse=timedelta(days=7)))
    (file,) = stored(storage)
    file.write_text(content)

    assert outputs(run_any_dag(asking("One?", reuse=timedelta(days=7)))) == ["The second answer."]


def test_answers_that_made_a_task_fail_are_asked_again_by_its_retry(run_any_dag, llm, storage):
    llm.reply("A good answer.")
    llm.call_tool("final_result", {"response": "no"}).call_tool("final_result", {"response": "no"})
    llm.call_tool("final_result", {"response": [7]})

    @dag(schedule=None, start_date=DATE)
    def asks():
        @task(retries=1)
        def ask():
            model = connection_model("pydanticai_default")
            return [Agent(model).run_sync("One?").output, Agent(model, output_type=list[int]).run_sync("Two?").output]

        ask()

    run = run_any_dag(asks())
    assert run.state == "success"
    assert run.xcom("ask") == ["A good answer.", [7]]
    assert run.task_instance("ask").try_number == 2
    assert len(questions(llm)) == 4


def test_a_retry_takes_what_a_fallback_answered(run_any_dag, llm, storage, monkeypatch):
    down = {"conn_type": "pydanticai", "host": "http://127.0.0.1:9/v1", "password": "x"}
    extra = {"model": "openai-chat:gpt-6-luna", "fallback_conn_ids": ["second"]}
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", json.dumps(down | {"extra": extra}))
    monkeypatch.setenv("AIRFLOW_CONN_SECOND", model_connection(llm.base_url()))
    monkeypatch.setattr("include.ai.repeats.PAUSES_S", (0.0, 0.0))
    llm.reply("The answer of the second.")
    run = run_any_dag(asking("One?", fails=1))

    assert outputs(run) == ["The answer of the second."]
    assert run.xcom("ask")[0][1]["conn_id"] == "second"
    assert len(questions(llm)) == 1


def test_a_storage_that_fails_costs_no_answer(run_any_dag, llm, storage, monkeypatch, logged):
    def fails(*_: Any) -> None:
        raise OSError("The disk is full.")

    monkeypatch.setattr("include.ai.reuse.write_artifact", fails)
    monkeypatch.setattr("include.ai.reuse.read_artifact", fails)
    monkeypatch.setattr("include.ai.reuse._has_warned", False)
    llm.reply("An answer.").reply("Another answer.")

    assert outputs(run_any_dag(asking("One?", "Two?"))) == ["An answer.", "Another answer."]
    assert logged().count("The disk is full.") == 1


def test_outside_a_task_nothing_is_stored(llm, storage):
    llm.reply("An answer.").reply("Another.")
    agent = Agent(connection_model("pydanticai_default"))

    assert [agent.run_sync("One?").output for _ in range(2)] == ["An answer.", "Another."]
    assert stored(storage) == []


def test_a_provider_that_fails_leaves_nothing_to_reuse(run_any_dag, llm, storage):
    llm.fail(503, times=3)
    llm.reply("An answer.")
    run = run_any_dag(asking("One?"))
    assert outputs(run) == ["An answer."]
    assert len(stored(storage)) == 1


@pytest.mark.parametrize("wrong", ["always", "", None, 7, timedelta(0), timedelta(days=-1), "Retries"])
def test_a_reuse_without_meaning_is_refused_when_the_dag_is_parsed(wrong):
    for make in (llm_kwargs, lambda reuse: agent_kwargs(system_prompt="Answer.", reuse=reuse)):
        with pytest.raises(ValueError, match=r"reuse=.*'try', 'retries', 'run', or a timedelta of more than 0"):
            make(reuse=wrong)


def test_an_answer_with_a_file_comes_back_as_it_was():
    image = FilePart(BinaryContent(b"\x89PNG\xff", media_type="image/png"))
    answer = StoredAnswer(
        answered_at=DATE, conn_id="c", asked_by={}, response=ModelResponse(parts=[TextPart("\u2028 \U0001f69a"), image])
    )
    stored = answer.model_dump_json()
    read = StoredAnswer.model_validate_json(stored)
    assert read.model_dump_json() == stored
    assert read.response.parts[1].content.data == image.content.data


def test_many_texts_that_are_asked_side_by_side_are_asked_once_over_runs(run_any_dag, llm, storage):
    texts = [f"Is it {number}?" for number in range(8)] + ["Is it 1?"]

    @dag(schedule=None, start_date=DATE)
    def asks():
        @task(retries=1)
        def ask():
            usage = TaskUsage()
            model = layered_model(
                "pydanticai_default", lambda conn_id: LimitedModel(conn_id, usage, 4), reuse=timedelta(days=1)
            )
            asking = Asking(model, "Answer.", Verdict)

            async def ask_all() -> list[Any]:
                first = await asking.ask(texts[0])
                return [first, *await asyncio.gather(*(asking.ask(text) for text in texts[1:]))]

            try:
                return asyncio.run(ask_all())
            finally:
                usage.publish()

        ask()

    llm.call_tool("final_result", {"fits": True}, times=None)
    first, second = (run_any_dag(asks()) for _ in range(2))
    assert first.state == second.state == "success"
    assert second.xcom("ask") == first.xcom("ask") == [{"fits": True}] * 9
    assert len(questions(llm)) == 9
    assert second.xcom("ask", "llm_usage")["reused"] == 9


# Killed (-9) after each call, and between the last call and the XCom.


def look_up(name: str) -> str:
    """Look something up."""
    return f"data of {name}"


def test_an_agent_that_is_killed_after_each_call_goes_on_where_it_was(run_any_dag, llm, storage, monkeypatch):
    def agents():
        @task.agent(**agent_kwargs(system_prompt="Be brief.", tools=[look_up]))
        def answer():
            return untrusted("Hello")

        answer()

    llm.call_tool("look_up", {"name": "Ada"}).call_tool("look_up", {"name": "Bob"}).reply("done")
    kill_tries(monkeypatch, {"answer": [1, 2, "end"]})
    run = run_any_dag(dag(schedule=None, start_date=DATE)(agents)())

    assert run.state == "success"
    assert run.xcom("answer") == "done"
    assert run.task_instance("answer").try_number == 4
    assert len(questions(llm)) == 3
    assert run.xcom("answer", "llm_usage")["reused"] == 3
