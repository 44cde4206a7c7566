"""`include.ai`, the seam between the DAGs and the AI SDK: outputs, prompts, task settings, the model."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from importlib.metadata import distributions
from typing import Any

import pytest
from airflow.sdk import dag, task
from pydantic import Field, ValidationError
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.usage import RequestUsage

from include.ai import AIRFLOW_AI_SDK, COMMON_AI, BaseModel, active_sdk, llm_kwargs, untrusted
from include.ai.agents import agent_kwargs
from include.ai.model import ConnectionModel
from include.ai.output import output_to_json
from tests.conftest import KEY, PROJECT


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


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


class Label(BaseModel):
    name: str


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

    dumped = output_to_json(order)
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


def test_a_validation_error_names_the_field_and_does_not_quote_the_answer():
    with pytest.raises(ValidationError) as error:
        Part.model_validate({"colour": "a-secret-colour"})

    assert "colour" in str(error.value)
    assert "a-secret-colour" not in str(error.value)


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


@pytest.mark.parametrize(
    ("output_type", "parts"),
    [
        (NativeOutput(Label), [TextPart('{"name": "nu\\u0000ll \\ud83d"}')]),
        (ToolOutput(Label, name="label"), [ToolCallPart("label", '{"name": "nu\\u0000ll \\ud83d"}')]),
        (ToolOutput(Label, name="label"), [ToolCallPart("label", {"name": "nu\0ll \ud83d"})]),
        (str, [TextPart("nu\0ll \ud83d")]),
    ],
    ids=["JSON in a text", "arguments as text", "arguments", "a text"],
)
def test_an_answer_is_taken_without_half_characters_and_nulls(llm, monkeypatch, output_type, parts):
    response = ModelResponse(parts, usage=RequestUsage(input_tokens=1, output_tokens=1))
    model = FunctionModel(lambda *_: response, profile={"supports_json_schema_output": True})
    monkeypatch.setattr(ConnectionModel, "wrapped", model)
    answer = Agent(ConnectionModel("pydanticai_default"), output_type=output_type).run_sync("Who?").output

    assert answer in ("null \ufffd", Label(name="null \ufffd"))


class Verdict(BaseModel):
    fine: bool = Field(description="Whether it is fine.")


def look_up(name: str) -> str:
    """Look something up."""
    return f"data of {name}"


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

        @task
        def end(): ...

        judge() >> answer.expand(n=[1, 2]) >> choose() >> end()

    return example()


def test_a_dag_serializes_the_same_each_time_it_is_parsed_and_after_its_model_was_used(run_any_dag, llm):
    from airflow.serialization.serialized_objects import LazyDeserializedDAG

    def serialized(dag: Any) -> str:
        return json.dumps(LazyDeserializedDAG.from_dag(dag).data, sort_keys=True)

    before = serialized(example_dag())
    llm.call_tool("final_result", {"fine": True}).reply("Hi.", times=2).call_tool("final_result", {"response": "end"})
    assert run_any_dag(example_dag()).state == "success"

    assert serialized(example_dag()) == before
    assert "pydanticai_default" in before
    assert " at 0x" not in before
    assert KEY not in before


# Which SDK


def active_sdk_of(*setup: str) -> str:
    """What a fresh process says that runs these statements first, each a line."""
    code = "\n".join([*setup, "try:", "    from include.ai import active_sdk; print(active_sdk())"])
    code += "\nexcept ImportError as error: print(error)"
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=PROJECT).stdout.splitlines()[-1]


def test_the_sdk_is_the_one_that_registered_the_decorators():
    (installed,) = [
        package
        for package, name in ((AIRFLOW_AI_SDK, "airflow-ai-sdk"), (COMMON_AI, "apache-airflow-providers-common-ai"))
        if any(found.name == name for found in distributions())
    ]
    assert active_sdk() == installed


def test_without_an_sdk_it_says_which_to_install():
    said = active_sdk_of(
        "import importlib.metadata, importlib_metadata",
        "every = importlib_metadata.distributions",
        "ai = ('airflow-ai-sdk', 'apache-airflow-providers-common-ai')",
        "others = lambda **how: (d for d in every(**how) if d.metadata['Name'] not in ai)",
        "importlib.metadata.distributions = importlib_metadata.distributions = others",
    )
    assert said.startswith("One AI SDK is needed: airflow-ai-sdk")
    assert said.endswith("@task.llm comes from: none.")


def test_two_sdks_are_named_with_the_one_that_airflow_uses(tmp_path):
    other = {AIRFLOW_AI_SDK: COMMON_AI, COMMON_AI: AIRFLOW_AI_SDK}[active_sdk()]
    package = tmp_path.joinpath(*other.split("."))
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    extend = f"import airflow.providers.common; airflow.providers.common.__path__.append({str(package.parent)!r})"
    said = active_sdk_of(f"import sys; sys.path.append({str(tmp_path)!r})", extend)

    assert said.startswith("One AI SDK is needed: airflow-ai-sdk")
    assert f"Installed: {AIRFLOW_AI_SDK} and {COMMON_AI}. @task.llm comes from: {active_sdk()}." in said
