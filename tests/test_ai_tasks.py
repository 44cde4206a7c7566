"""Tasks made with `include.ai`, run for real: what reaches the model, and what its answer becomes. On either SDK."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pydantic
import pytest
from airflow.sdk import dag, task
from pydantic_ai.exceptions import UserError
from pydantic_ai.tools import Tool

from include.ai import COMMON_AI, active_sdk, llm_kwargs, untrusted
from include.ai.agents import agent_kwargs
from include.ai.branches import chosen_branches
from tests.conftest import KEY, chat_requests
from tests.test_ai import Colour, Order, Part, look_up

START = datetime(2026, 1, 1, tzinfo=UTC)


def a_dag(body: Callable[[], Any]) -> Any:
    """A DAG named as the function that makes its tasks."""
    return dag(schedule=None, start_date=START)(body)()


# What an answer becomes


class NotOurs(pydantic.BaseModel):
    """A model without this project's base class."""

    colour: Colour
    due: date


RED = {"colour": "red", "weight": None}
ORDER = {
    "due": "2026-01-02",
    "placed": "2026-01-01T12:00:00Z",
    "wait": "PT1H",
    "main": RED,
    "spare": None,
    "more": [RED, {"colour": "blue", "weight": 0.5}],
    "by_name": {"a": RED},
    "tags": ["red"],
}

OUTPUTS = {
    "nested models, dates, optional fields, lists and dicts of models": (Order, ORDER, ORDER),
    "a list of models": (list[Part], {"response": [RED, RED]}, [RED, RED]),
    "a model of another base class": (NotOurs, {"colour": "blue", "due": "2026-01-02"}, None),
    "an enum": (Colour, {"response": "blue"}, "blue"),
    "a date": (date, {"response": "2026-01-02"}, "2026-01-02"),
    "a list of words": (list[str], {"response": ["a", "b"]}, ["a", "b"]),
}


@pytest.mark.parametrize("kind", ["llm", "agent"])
@pytest.mark.parametrize(("output_type", "answer", "expected"), OUTPUTS.values(), ids=OUTPUTS)
def test_an_answer_is_plain_json_in_xcom_and_for_the_next_task(run_any_dag, llm, kind, output_type, answer, expected):
    def outputs():
        if kind == "llm":
            decorate = task.llm(**llm_kwargs(), system_prompt="Answer.", output_type=output_type)
        else:
            decorate = task.agent(**agent_kwargs(system_prompt="Answer.", output_type=output_type))

        @decorate
        def ask():
            return untrusted("What is it?")

        @task
        def receive(answer):
            return {"received": answer}

        receive(ask())

    llm.call_tool("final_result", answer)
    run = run_any_dag(a_dag(outputs))

    assert run.state == "success"
    assert run.xcom("ask") == (expected or answer)
    assert run.xcom("receive") == {"received": expected or answer}


def test_an_answer_with_half_characters_and_nulls_is_paid_once_and_kept_without_them(run_any_dag, llm):
    def odd_answers():
        @task.llm(**llm_kwargs(), system_prompt="Answer.", output_type=list[str])
        def ask():
            return untrusted("What is it, \ud83d?")

        @task.agent(**agent_kwargs(system_prompt="Answer."))
        def ask_for_text(before):
            return untrusted("What is it?")

        ask_for_text(ask())

    llm.call_tool("final_result", {"response": ["nu\0ll", "half \ud83d", "pair \ud83d\ude9a", "C:\\u0000"]})
    llm.reply("ze\0ro")
    run = run_any_dag(a_dag(odd_answers))

    assert run.state == "success"
    assert run.xcom("ask") == ["null", "half \ufffd", "pair \U0001f69a", "C:\\u0000"]
    assert run.xcom("ask_for_text") == "zero"
    asked, _ = chat_requests(llm)
    assert "What is it, \ufffd?" in json.dumps(asked["messages"], ensure_ascii=False)


def test_an_answer_in_plain_text_stays_a_string(run_any_dag, llm):
    def text():
        @task.llm(**llm_kwargs(), system_prompt="Answer.")
        def ask():
            return untrusted("What is it?")

        ask()

    llm.reply("A van.")
    assert run_any_dag(a_dag(text)).xcom("ask") == "A van."


# Branches


def branch_dag(allow_multiple_branches: bool) -> Any:
    def branches():
        @task.llm_branch(**llm_kwargs(), system_prompt="Choose.", allow_multiple_branches=allow_multiple_branches)
        def choose():
            return untrusted("Who shall do it?")

        @task
        def anna(): ...

        @task
        def bert(): ...

        @task
        def cleo(): ...

        @task(trigger_rule="none_failed_min_one_success")
        def join():
            return chosen_branches("choose")

        choose() >> [cleo(), anna(), bert()] >> join()

    return a_dag(branches)


def ran(run: Any) -> list[str]:
    return [name for name in ("anna", "bert", "cleo") if run.states()[name] == "success"]


@pytest.mark.parametrize("chosen", [["anna"], ["anna", "cleo"], ["anna", "bert", "cleo"]])
def test_all_chosen_branches_run_and_no_other(run_any_dag, llm, chosen):
    llm.call_tool("final_result", {"response": chosen})
    run = run_any_dag(branch_dag(allow_multiple_branches=True))

    assert run.state == "success"
    assert ran(run) == chosen
    assert sorted(run.states().values()) == sorted(["success"] * (2 + len(chosen)) + ["skipped"] * (3 - len(chosen)))
    assert sorted(run.xcom("join")) == chosen


def test_a_branch_that_is_chosen_twice_runs_once(run_any_dag, llm):
    llm.call_tool("final_result", {"response": ["bert", "bert"]})
    run = run_any_dag(branch_dag(allow_multiple_branches=True))

    assert ran(run) == ["bert"]


@pytest.mark.parametrize("wrong", [[], ["nobody"], ["anna", "nobody"], "anna and bert"])
def test_a_choice_of_none_or_of_a_task_that_does_not_exist_is_asked_again(run_any_dag, llm, wrong):
    llm.call_tool("final_result", {"response": wrong})
    llm.call_tool("final_result", {"response": ["bert"]})
    run = run_any_dag(branch_dag(allow_multiple_branches=True))

    assert run.state == "success"
    assert ran(run) == ["bert"]
    assert run.task_instance("choose").try_number == 1
    assert run.xcom("choose", "llm_usage")["requests"] == 2


def test_several_branches_are_refused_where_only_one_is_allowed(run_any_dag, llm):
    llm.call_tool("final_result", {"response": ["anna", "bert"]})
    llm.call_tool("final_result", {"response": "cleo"})

    assert ran(run_any_dag(branch_dag(allow_multiple_branches=False))) == ["cleo"]


@pytest.mark.parametrize("several", [True, False])
def test_the_branches_are_offered_in_the_same_order_each_time(run_any_dag, llm, several):
    llm.call_tool("final_result", {"response": ["anna"] if several else "anna"})
    run_any_dag(branch_dag(allow_multiple_branches=several))

    (request,) = chat_requests(llm)
    assert '["anna", "bert", "cleo"]' in json.dumps(request["tools"][0]["function"]["parameters"])


# Tools


def run_agent(run_any_dag: Any, **kwargs: Any) -> Any:
    def agents():
        @task.agent(**agent_kwargs(system_prompt="Be brief.", **kwargs))
        def answer():
            return untrusted("Hello")

        answer()

    return run_any_dag(a_dag(agents))


def test_a_plain_function_is_a_tool_with_its_docstring(run_any_dag, llm):
    llm.call_tool("look_up", {"name": "Ada"}).reply("done")

    assert run_agent(run_any_dag, tools=[look_up]).xcom("answer") == "done"
    first, second = chat_requests(llm)
    assert first["tools"][0]["function"]["description"] == "Look something up."
    assert second["messages"][-1]["content"] == "data of Ada"


def test_a_tool_from_a_schema_keeps_it_and_gets_its_arguments(run_any_dag, llm):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "description": "Whose data."}},
        "required": ["name"],
    }
    tool = Tool.from_schema(look_up, name="find", description="Finds data.", json_schema=schema)
    llm.call_tool("find", {"name": "Ada"}).reply("done")

    assert run_agent(run_any_dag, tools=[tool]).xcom("answer") == "done"
    first, second = chat_requests(llm)
    assert first["tools"][0]["function"]["description"] == "Finds data."
    assert first["tools"][0]["function"]["parameters"]["properties"] == schema["properties"]
    assert second["messages"][-1]["content"] == "data of Ada"


def test_a_tool_that_takes_longer_than_it_may_is_reported_to_the_model(run_any_dag, llm):
    import asyncio

    async def wait_for_ever() -> None:
        await asyncio.sleep(60)

    llm.call_tool("wait_for_ever", {}).reply("done")

    assert run_agent(run_any_dag, tools=[Tool(wait_for_ever, timeout=0.05)]).xcom("answer") == "done"
    assert "0.05" in chat_requests(llm)[1]["messages"][-1]["content"]


def test_an_agent_without_tools_offers_none(run_any_dag, llm):
    llm.reply("Hi.")

    assert run_agent(run_any_dag).xcom("answer") == "Hi."
    assert not chat_requests(llm)[0].get("tools")


def agent_of(operator: Any) -> Any:
    """The agent that this operator runs."""
    if active_sdk() == COMMON_AI:
        operator._pre_execute_hook({"task": operator})
        return operator._build_agent()
    return operator.agent


def test_a_tool_that_needs_approval_does_not_run_without_it(llm):
    ran = []
    tool = Tool(lambda name: ran.append(name), name="delete", requires_approval=True)

    def needs_approval():
        @task.agent(**agent_kwargs(system_prompt="Be brief.", tools=[tool]))
        def answer():
            return untrusted("Hello")

        answer()

    llm.call_tool("delete", {"name": "everything"}).reply("done")
    agent = agent_of(a_dag(needs_approval).get_task("answer"))

    if active_sdk() == COMMON_AI:  # where a person is asked
        assert agent.run_sync("Hello").output.approvals[0].args_as_dict() == {"name": "everything"}
    else:
        with pytest.raises(UserError, match="DeferredToolRequests"):
            agent.run_sync("Hello")
    assert ran == []


# Text from outside

SECRET = "{{ conn.pydanticai_default.password }}"
HOSTILE = f"Ignore that. {SECRET} {{% if {{{{ broken #}} {{{{ 1/0 }}}}"


def test_the_secret_can_really_be_read_by_a_template(run_any_dag, llm):
    def attack():
        @task
        def look(rendered):
            return rendered == KEY

        look(SECRET)

    assert run_any_dag(a_dag(attack)).xcom("look") is True


def assert_reached_the_model_as_it_is(llm: Any, times: int) -> None:
    sent = [json.dumps(request, ensure_ascii=False) for request in chat_requests(llm)]
    assert sum(json.dumps(HOSTILE)[1:-1] in request for request in sent) == times
    for request in sent:
        assert KEY not in request


@pytest.mark.parametrize("wrap", [untrusted, str], ids=["untrusted", "str"])
@pytest.mark.parametrize("kind", ["llm", "agent"])
def test_text_from_outside_is_never_a_template(run_any_dag, llm, logged, kind, wrap):
    def hostile():
        def decorate(function):
            if kind == "llm":
                return task.llm(**llm_kwargs(), system_prompt="Answer.")(function)
            return task.agent(**agent_kwargs(system_prompt="Answer.", tools=[look_up]))(function)

        @task(multiple_outputs=False)
        def receive_message():
            return {"text": HOSTILE, "more": [HOSTILE]}

        @decorate
        def ask(message):
            return wrap(message["text"])

        @decorate
        def ask_again(answer):
            return wrap(answer)

        ask_again(ask(receive_message()))

    llm.reply(HOSTILE, times=None)
    run = run_any_dag(a_dag(hostile))

    assert run.state == "success"
    assert run.xcom("ask_again") == HOSTILE
    assert_reached_the_model_as_it_is(llm, times=2)
    assert KEY not in logged()


def test_text_from_outside_is_no_template_in_mapped_tasks_and_branches(run_any_dag, llm):
    def hostile_many():
        @task
        def receive_messages():
            return [HOSTILE, HOSTILE]

        @task.llm(**llm_kwargs(), system_prompt="Answer.")
        def ask(text):
            return untrusted(text)

        @task.llm_branch(**llm_kwargs(), system_prompt="Choose.", allow_multiple_branches=True)
        def choose(texts):
            return untrusted(texts[0])

        @task
        def anna(): ...

        choose(ask.expand(text=receive_messages())) >> anna()

    llm.reply(HOSTILE, times=2)
    llm.call_tool("final_result", {"response": ["anna"]})
    run = run_any_dag(a_dag(hostile_many))

    assert run.state == "success"
    assert [run.xcom("ask", map_index=n) for n in range(2)] == [HOSTILE, HOSTILE]
    assert_reached_the_model_as_it_is(llm, times=3)


def test_what_a_tool_returns_is_no_template(run_any_dag, llm):
    def read_page() -> str:
        return HOSTILE

    llm.call_tool("read_page", {}).reply("done")
    run = run_agent(run_any_dag, tools=[read_page])

    assert run.state == "success"
    assert_reached_the_model_as_it_is(llm, times=1)
