"""Ask a model the same question about many texts, with little overhead for each.

A pydantic-ai agent spends more time on a call than the call itself takes. So only the first text goes through an agent;
the others reuse its request with another text. The agent takes over when an answer does not have the required form: it
gets that answer, which is paid already, and asks the model again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RunUsage

from include.ai.output import output_to_json
from include.common.text import whole_characters

try:
    from include.ai import tracing
except ImportError:  # a copied pattern may lack it
    tracing = None  # type: ignore[assignment]


class _Form(NamedTuple):
    """What an agent gives its model besides the messages, and whether the model answers in plain text."""

    settings: ModelSettings | None
    parameters: ModelRequestParameters
    is_text: bool


class Asking:
    """A model with a prompt and a form for its answers.

    :param system_prompt: what to do with the texts.
    :param output_type: the form of an answer.
    """

    def __init__(self, model: Model, system_prompt: str, output_type: type[BaseModel]) -> None:
        self._model = model
        self._system_prompt = system_prompt
        self._output_type = output_type
        self._agent: Agent[None, Any] = Agent(system_prompt=system_prompt, output_type=output_type)
        self._form: _Form | None = None

    async def ask(self, text: str, usage: RunUsage | None = None) -> Any:
        """Ask about a text from outside and return the answer as plain JSON.

        :param text: sent unchanged, except that lone surrogates, which no request can contain, are replaced.
        :param usage: what the calls use is added to it, even if they fail.
        :raises pydantic_ai.UnexpectedModelBehavior: the answers do not have the form, even when asked again.
        :raises AirflowFailException: no retry of the task can help.
        :raises AirflowException: a later try may succeed.
        """
        usage = RunUsage() if usage is None else usage
        prompt = whole_characters(text)  # a list of parts costs the openai client half a millisecond more
        answer = None
        if self._form:
            question = ModelRequest(parts=[SystemPromptPart(self._system_prompt), UserPromptPart(prompt)])
            model = tracing.traced(self._model) if tracing else self._model
            answer = await model.request([question], self._form.settings, self._form.parameters)
            if (output := self._read(answer, self._form)) is not None:
                usage.requests += 1
                usage.incr(answer.usage)
                return output_to_json(output)
            answer.metadata = {"reused_from": "the call before", **(answer.metadata or {})}
        model = _OfAgent(self._model, answer, self._learn)
        return output_to_json((await self._agent.run(prompt, model=model, usage=usage)).output)

    def _learn(self, settings: ModelSettings | None, parameters: ModelRequestParameters) -> None:
        """Learn from a request of the agent how to ask without it."""
        mode = self._model.prepare_request(settings, parameters)[1].output_mode
        self._form = _Form(settings, parameters, is_text=mode in ("native", "prompted"))

    def _read(self, answer: ModelResponse, form: _Form) -> BaseModel | None:
        """Return the output; None if it is not in the simplest form, so that the agent has to handle the answer."""
        given: Any
        match [part for part in answer.parts if not isinstance(part, ThinkingPart)]:
            case [ToolCallPart(tool_name=name, args=given)] if name in [t.name for t in form.parameters.output_tools]:
                pass
            case [TextPart(content=given)] if form.is_text:
                pass
            case _:
                return None
        try:
            if isinstance(given, str):
                return self._output_type.model_validate_json(given or "{}")
            return self._output_type.model_validate(given or {})
        except (ValidationError, ModelRetry):
            return None


class _OfAgent(WrapperModel):
    """The model for one run of the agent.

    :param answer: the answer to the first request, if there is one already.
    :param learn: called with the settings and parameters of each request.
    """

    def __init__(
        self, wrapped: Model, answer: ModelResponse | None, learn: Callable[[Any, ModelRequestParameters], None]
    ) -> None:
        super().__init__(wrapped)
        self._answer = answer
        self._learn = learn

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Return the answer that exists already, or call the model."""
        self._learn(model_settings, model_request_parameters)
        answer, self._answer = self._answer, None
        return answer or await self.wrapped.request(messages, model_settings, model_request_parameters)
