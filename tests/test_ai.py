"""`include.ai`, the seam between the DAGs and the AI SDK: outputs, tools, prompts, task settings, the model."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from typing import Any

import pytest
from airflow.sdk import dag, task
from pydantic import Field, ValidationError
from pydantic_ai.tools import Tool

from include.ai import BaseModel, agent_kwargs, llm_kwargs, untrusted
from include.llm_model import ConnectionModel
from tests.conftest import KEY


class Colour(Enum):
    RED = "red"


class Part(BaseModel):
    colour: Colour
    weight: float | None = None


class Order(BaseModel):
    due: date
    placed: datetime
    wait: timedelta
    main: Part
    spare: Part | None
    more: list[Part]
    by_name: dict[str, Part]
    tags: set[Colour]


# Outputs


def test_an_output_becomes_plain_json():
    red, light = Part(colour=Colour.RED), Part(colour=Colour.RED, weight=0.5)
    order = Order(
        due=date(2026, 1, 2),
        placed=datetime(2026, 1, 1, 12, tzinfo=UTC),
        wait=timedelta(hours=1),
        main=red,
        spare=None,
        more=[light, red],
        by_name={"a": light},
        tags={Colour.RED},
    )

    dumped = order.model_dump()
    assert json.loads(json.dumps(dumped)) == dumped
    assert dumped == {
        "due": "2026-01-02",
        "placed": "2026-01-01T12:00:00Z",
        "wait": "PT1H",
        "main": {"colour": "red", "weight": None},
        "spare": None,
        "more": [{"colour": "red", "weight": 0.5}, {"colour": "red", "weight": None}],
        "by_name": {"a": {"colour": "red", "weight": 0.5}},
        "tags": ["red"],
    }
    assert Order.model_validate(dumped) == order


def test_an_output_still_dumps_python_objects_on_request():
    assert Part(colour=Colour.RED).model_dump(mode="python", exclude={"weight"}) == {"colour": Colour.RED}


def test_a_validation_error_names_the_field_and_does_not_quote_the_answer():
    with pytest.raises(ValidationError) as error:
        Part.model_validate({"colour": "a-secret-colour"})

    assert "colour" in str(error.value)
    assert "a-secret-colour" not in str(error.value)


# Tools


def look_up(name: str) -> str:
    """Look something up."""
    return f"data of {name}"


def agent_task(**kwargs: Any) -> Any:
    """The agent inside an operator that was constructed from `agent_kwargs`."""

    @dag(schedule=None)
    def example():
        @task.agent(**agent_kwargs(system_prompt="Be brief.", **kwargs))
        def answer():
            return untrusted("Hello")

        answer()

    return example().get_task("answer").agent


def offered_tools(agent: Any) -> dict[str, Any]:
    """The tools that the agent would offer to a model, by name."""
    return {name: tool for toolset in agent.toolsets for name, tool in getattr(toolset, "tools", {}).items()}


def test_a_tool_keeps_its_settings_in_the_operator():
    tool = Tool(look_up, name="find", requires_approval=True, max_retries=4, timeout=7.5)
    found = offered_tools(agent_task(tools=[tool]))["find"]

    assert found.requires_approval is True
    assert found.max_retries == 4
    assert found.timeout == 7.5


def test_a_tool_from_a_schema_keeps_it_and_gets_its_arguments(llm):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "description": "Whose data."}},
        "required": ["name"],
    }
    tool = Tool.from_schema(look_up, name="find", description="Finds data.", json_schema=schema)
    agent = agent_task(tools=[tool])
    llm.call_tool("find", {"name": "Ada"}).reply("done")

    assert agent.run_sync("Hello").output == "done"
    (offered,) = llm.requests[0].body["tools"]
    assert offered["function"]["description"] == "Finds data."
    assert offered["function"]["parameters"]["properties"] == schema["properties"]
    assert llm.requests[1].body["messages"][-1]["content"] == "data of Ada"


def test_a_plain_function_is_a_tool_with_its_docstring(llm):
    llm.call_tool("look_up", {"name": "Ada"}).reply("done")

    assert agent_task(tools=[look_up]).run_sync("Hello").output == "done"
    assert llm.requests[0].body["tools"][0]["function"]["description"] == "Look something up."
    assert llm.requests[1].body["messages"][-1]["content"] == "data of Ada"


def test_a_tool_that_needs_approval_does_not_run_without_it(llm):
    from pydantic_ai.exceptions import UserError

    ran = []
    tool = Tool(lambda name: ran.append(name), name="delete", requires_approval=True)
    llm.call_tool("delete", {"name": "everything"}).reply("done")

    with pytest.raises(UserError, match="DeferredToolRequests"):
        agent_task(tools=[tool]).run_sync("Hello")
    assert ran == []


def test_an_agent_without_tools_offers_none(llm):
    llm.reply("Hi.")

    assert agent_task().run_sync("Hello").output == "Hi."
    assert not llm.requests[0].body.get("tools")


# Prompts and task settings


@pytest.mark.parametrize("text", ["{{ conn.x.password }}", "report.sql", "", "Grüße 🚚 \x00"])
def test_untrusted_text_is_no_string_that_airflow_would_render(text):
    (content,) = untrusted(text)

    assert not isinstance(content, str)
    assert content.content == text


def test_tasks_that_call_a_model_retry_end_in_time_and_share_the_pool():
    for kwargs in (llm_kwargs(), agent_kwargs(system_prompt="Be brief.")):
        assert kwargs["retries"] == 3
        assert kwargs["retry_exponential_backoff"] is True
        assert kwargs["max_retry_delay"] <= timedelta(minutes=5)
        assert timedelta(minutes=5) <= kwargs["execution_timeout"] <= timedelta(hours=1)
        assert kwargs["pool"] == "llm_pool"


def test_changing_one_tasks_settings_leaves_the_next_ones_alone():
    llm_kwargs()["retries"] = 0

    assert llm_kwargs()["retries"] == 3


# The model


def test_a_model_is_made_without_connection_or_key(monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    assert repr(ConnectionModel("no_such_connection")) == "ConnectionModel('no_such_connection')"


class Verdict(BaseModel):
    fine: bool = Field(description="Whether it is fine.")


def example_dag() -> Any:
    @dag(schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC))
    def example():
        @task.llm(**llm_kwargs(), system_prompt="Judge.", output_type=Verdict)
        def judge():
            return untrusted("Hello")

        @task.agent(**agent_kwargs(system_prompt="Be brief.", tools=[look_up]))
        def answer(n: int):
            return untrusted("Hello")

        @task.llm_branch(**llm_kwargs(), system_prompt="Choose.")
        def choose():
            return untrusted("Hello")

        judge() >> answer.expand(n=[1, 2]) >> choose()

    return example()


def test_a_dag_serializes_the_same_each_time_it_is_parsed_and_after_its_model_was_used(llm):
    from airflow.serialization.serialized_objects import SerializedDAG

    def serialized(dag: Any) -> str:
        return json.dumps(SerializedDAG.to_dict(dag), sort_keys=True)

    first = example_dag()
    before = serialized(first)
    llm.reply("Hi.")
    assert first.get_task("answer").partial_kwargs["agent"].run_sync("Hello").output == "Hi."

    assert serialized(example_dag()) == before
    assert "ConnectionModel('pydanticai_default')" in before
    assert " at 0x" not in before
    assert KEY not in before
