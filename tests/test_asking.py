"""`include.ai.asking`: the same answers, errors, usage and requests as an agent's, at less cost."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from pydantic import BaseModel, field_validator
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ThinkingPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.usage import RequestUsage, RunUsage

from include.ai.asking import Asking

pytestmark = pytest.mark.one_stack

PROMPT = "Label."


class Labels(BaseModel):
    sentiment: Literal["good", "bad"]

    @field_validator("sentiment")
    @classmethod
    def _may_be_refused(cls, value: str) -> str:
        if value == "bad":
            raise ModelRetry("Never bad.")
        return value


GOOD = ToolCallPart("final_result", '{"sentiment": "good"}')
# What the model answers, one after the other.
ANSWERS: dict[str, list[list[Any]]] = {
    "the form": [[GOOD]],
    "as an object": [[ToolCallPart("final_result", {"sentiment": "good"})]],
    "with a thought": [[ThinkingPart("Hm."), GOOD]],
    "with a text": [[TextPart("Here you are."), GOOD]],
    "twice": [[GOOD, GOOD]],
    "a wrong value, then the form": [[ToolCallPart("final_result", '{"sentiment": "so-so"}')], [GOOD]],
    "refused by its own check, then the form": [[ToolCallPart("final_result", '{"sentiment": "bad"}')], [GOOD]],
    "not JSON, then the form": [[ToolCallPart("final_result", "{")], [GOOD]],
    "nothing, then the form": [[ToolCallPart("final_result", "")], [GOOD]],
    "another tool, then the form": [[ToolCallPart("other", "{}")], [GOOD]],
    "a text, then the form": [[TextPart("good")], [GOOD]],
    "empty, then the form": [[], [GOOD]],
    "never the form": [[ToolCallPart("final_result", "{}")]] * 5,
    "JSON as a text": [[TextPart('{"sentiment": "good"}')], [GOOD]],
    "JSON in a fence": [[TextPart('```json\n{"sentiment": "good"}\n```')], [GOOD]],
}


def scripted(answers: list[list[Any]], mode: str) -> tuple[FunctionModel, list[Any]]:
    """A model with these answers, and what it was asked."""
    asked: list[Any] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        parts = [(type(part).__name__, getattr(part, "content", None)) for each in messages for part in each.parts]
        asked.append((parts, info.output_tools, info.model_settings, info.model_request_parameters))
        parts_of_answer = answers[len(asked) - 1]
        return ModelResponse(parts=list(parts_of_answer), usage=RequestUsage(input_tokens=7, output_tokens=3))

    return FunctionModel(
        answer, profile=ModelProfile(default_structured_output_mode=mode, supports_json_schema_output=True)
    ), asked  # type: ignore[typeddict-item]


def outcome(run: Any, usage: RunUsage) -> tuple[Any, RunUsage]:
    try:
        return asyncio.run(run), usage
    except UnexpectedModelBehavior as error:
        return str(error), usage


@pytest.mark.parametrize("mode", ["tool", "native", "prompted"])
@pytest.mark.parametrize("kind", ANSWERS)
def test_all_is_as_with_an_agent_for_the_first_text_and_for_later_ones(kind, mode):
    text = "review \ud800 1"
    agents_model, asked_by_agent = scripted(ANSWERS[kind], mode)
    used = RunUsage()

    async def by_agent() -> Any:
        agent = Agent(agents_model, system_prompt=PROMPT, output_type=Labels)
        return (await agent.run("review \ufffd 1", usage=used)).output.model_dump()

    expected, used = outcome(by_agent(), used)

    for before in ([], [[GOOD]] if mode == "tool" else [[TextPart('{"sentiment": "good"}')]]):
        model, asked = scripted(before + ANSWERS[kind], mode)
        asking = Asking(model, PROMPT, Labels)
        for _ in before:
            asyncio.run(asking.ask("review 0"))
        usage = RunUsage()
        assert outcome(asking.ask(text, usage), usage) == (expected, used)
        assert asked[len(before) :] == asked_by_agent


def test_only_the_first_text_takes_an_agent_as_long_as_the_answers_have_the_form(monkeypatch):
    model, asked = scripted([[GOOD]] * 5, "tool")
    asking = Asking(model, PROMPT, Labels)
    runs: list[Any] = []
    run = Agent.run

    def noted(self: Any, *arguments: Any, **more: Any) -> Any:
        runs.append(arguments)
        return run(self, *arguments, **more)

    monkeypatch.setattr(Agent, "run", noted)

    async def ask_all() -> None:
        for n in range(5):
            await asking.ask(f"review {n}")

    asyncio.run(ask_all())
    assert (len(runs), len(asked)) == (1, 5)
