"""A model for tasks that make many calls: they keep the account's limits, and go as fast as the provider takes them.

The connection's extra tells what the account allows: `"requests_per_minute"`, `"tokens_per_minute"`, and
`"pool_slots"`, the number of slots of the pool `llm_pool`. Each task gets the share of the limits that its slots are
of the pool, so that all of them together keep the limits.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import get_current_context
from pydantic import BaseModel, PositiveFloat, PositiveInt, ValidationError, model_validator
from pydantic_ai.messages import ModelResponse

from include.ai.connection import ModelSource
from include.ai.model import ConnectionModel
from include.ai.rate_limit import RateLimit
from include.ai.usage import LLMUsage, UsageRecorder, push_usage, sum_usage


class AccountLimits(BaseModel):
    """What a connection's extra tells of the account's limits: see the module."""

    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None
    pool_slots: PositiveInt | None = None

    @model_validator(mode="after")
    def _are_shared(self) -> AccountLimits:
        if (self.requests_per_minute or self.tokens_per_minute) and not self.pool_slots:
            raise ValueError('limits per minute need "pool_slots", the number of slots of the pool llm_pool')
        return self

    def share(self, slots: int) -> tuple[float | None, float | None]:
        """Return the requests and tokens per minute for a task that has so many of the pool's slots."""
        part = slots / (self.pool_slots or slots)
        return (
            self.requests_per_minute and self.requests_per_minute * part,
            self.tokens_per_minute and self.tokens_per_minute * part,
        )


def read_limits(source: ModelSource) -> AccountLimits:
    """Read the account's limits.

    :raises AirflowFailException: they make no sense.
    """
    try:
        return AccountLimits.model_validate({key: source.layer_args.get(key) for key in AccountLimits.model_fields})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc'])) or 'limits'}: {each['msg']}" for each in error.errors()]
        raise AirflowFailException(f"Connection {source.conn_id!r}, extra: {'; '.join(problems)}.") from None


class LimitedModel(ConnectionModel):
    """The model of a connection, for as many calls at once as its account and provider take.

    :param at_once: the most calls in flight. A call that waits to be repeated counts as in flight.
    """

    def __init__(self, conn_id: str, usage_recorder: UsageRecorder, at_once: int) -> None:
        super().__init__(conn_id, usage_recorder)
        self._at_once = at_once

    @cached_property
    def rate_limit(self) -> RateLimit:
        """This task's share of the account's limits.

        :raises AirflowFailException: the connection's limits make no sense.
        """
        try:
            slots = get_current_context()["task"].pool_slots
        except RuntimeError:  # outside a task
            slots = 1
        return RateLimit(*read_limits(self.source).share(slots), at_once=self._at_once)

    @property
    def hooks(self) -> dict[str, list[Any]]:
        """The event hooks of the HTTP client: those of any model, and the rate limit's."""
        every, limit = super().hooks, self.rate_limit.hooks
        return {name: [*limit.get(name, []), *every.get(name, [])] for name in limit | every}

    async def request(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """Call the model, as soon as there is a place for the call."""
        async with self.rate_limit.places:
            return await super().request(*args, **kwargs)


class TaskUsage(UsageRecorder):
    """Adds up the calls of a task. They reach XCom when asked to: at every call that would be slow."""

    def __init__(self) -> None:
        super().__init__()
        self._total: LLMUsage | None = None

    def record(self, call: LLMUsage) -> None:
        """Count one answered call."""
        self._total = sum_usage(self._total, call)

    def publish(self) -> None:
        """Update the XCom `llm_usage`. Outside a task, do nothing."""
        try:
            ti = get_current_context()["ti"]
        except RuntimeError:
            return
        if self._total:
            push_usage(ti, self._total)
