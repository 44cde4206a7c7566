"""Ask a model about many texts at once, and find out whether a text without an answer is itself at fault."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from pydantic_ai.exceptions import ModelHTTPError, ModelServerError, ModelTimeoutError, UnexpectedModelBehavior

from include.ai import LLM_CONN_ID
from include.ai.asking import Asking
from include.ai.layers import layered_model
from include.ai.limited_model import LimitedModel, TaskUsage
from include.ai.model import RequestRefused

if TYPE_CHECKING:
    from include.ai import BaseModel

TRIES = 3
# Every model can answer this. If it does not, the account, the connection or the provider is at fault.
HARMLESS = "Hello, is the app down for everybody?"


class Unanswerable(Exception):
    """The model answers other texts, but never this one."""


class PromptedModel:
    """The model of a connection, with a prompt.

    :param system_prompt: what to do with the texts.
    :param output_type: the form of the answers.
    :param in_flight: how many calls are made at the same time.
    :param conn_id: the connection to the model.
    """

    def __init__(
        self, system_prompt: str, output_type: type[BaseModel], in_flight: int, conn_id: str = LLM_CONN_ID
    ) -> None:
        self.in_flight = in_flight
        self.usage = TaskUsage()
        model = layered_model(conn_id, lambda conn_id: LimitedModel(conn_id, self.usage, in_flight), reuse="try")
        self._model = Asking(model, system_prompt, output_type)
        self._asking_harmless = asyncio.Lock()
        self._well_at = 0.0

    async def ask(self, text: str) -> Any:
        """Ask about a text and return the answer as plain JSON.

        A text that gets no answer is tried again, each time after the model has answered a harmless text.

        :raises Unanswerable: the text gets no answer in TRIES tries.
        :raises AirflowFailException: the account or the connection is at fault; no retry helps.
        :raises AirflowException: the provider fails now, for any text.
        """
        reason = ""
        for _ in range(TRIES):
            try:
                return await self._model.ask(text)
            except Exception as error:
                reason = _fault_of_the_text(error)
                if not reason:
                    raise
            await self._ask_harmless(time.monotonic())
        raise Unanswerable(f"no answer in {TRIES} tries, while the model answers others: {reason}")

    async def _ask_harmless(self, failed_at: float) -> None:
        """Check that the model answers now. Texts that fail at the same time share one call."""
        async with self._asking_harmless:
            if self._well_at < failed_at:
                asked_at = time.monotonic()
                await self._model.ask(HARMLESS)
                self._well_at = asked_at


def _fault_of_the_text(error: Exception) -> str:
    """Return how the text may have caused the error; empty if it cannot be at fault.

    A refused key, an unknown model, a used-up quota, a rate limit and an unreachable server are never the text's fault.
    """
    match error:
        case RequestRefused():
            return "the provider refuses it"
        case UnexpectedModelBehavior():
            return "the model's answers never have the required form"
    match error.__context__:  # `ConnectionModel` hides the provider's error from the log, but keeps it here
        case ModelServerError():
            return "the provider fails on it"
        case ModelTimeoutError():
            return "no answer in time"
        case ModelHTTPError(status_code=status) if status in (409, 413, 415, 422):
            return f"the provider refuses it (status {status})"
    return ""
