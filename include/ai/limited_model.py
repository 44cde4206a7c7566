"""A model for tasks that make many calls: as many at once as the account and its provider allow."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from pydantic_ai.messages import ModelResponse

from include.ai.account import account_limit
from include.ai.layers import LayeredModel
from include.ai.rate_limit import RateLimit
from include.ai.usage import LLMUsage, UsageRecorder, push_usage, sum_usage
from include.common.task_context import task_context


class LimitedModel(LayeredModel):
    """The model of a connection, for as many calls at once as its account and provider allow.

    :param at_once: the most calls in flight. A call that waits for its repeat counts as in flight.
    """

    def __init__(self, conn_id: str, usage_recorder: UsageRecorder, at_once: int) -> None:
        super().__init__(conn_id, usage_recorder)
        self._at_once = at_once

    @cached_property
    def rate_limit(self) -> RateLimit:  # type: ignore[override]
        """The account's limits, and the calls in flight.

        :raises AirflowFailException: the connection's limits are not valid.
        """
        return account_limit(self.source, self._at_once) or RateLimit(at_once=self._at_once)

    async def request(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """Call the model as soon as there is a place for the call."""
        async with self.rate_limit.places:
            return await super().request(*args, **kwargs)


class TaskUsage(UsageRecorder):
    """Adds up the calls of a task. Only `publish` writes to XCom, because doing so at every call would be slow."""

    def __init__(self) -> None:
        super().__init__()
        self._total: LLMUsage | None = None

    def record(self, call: LLMUsage) -> None:
        """Count one answered call."""
        self._total = sum_usage(self._total, call)

    def publish(self) -> None:
        """Update the XCom `llm_usage`. Outside a task, do nothing."""
        if self._total and (context := task_context()):
            push_usage(context["ti"], self._total)
