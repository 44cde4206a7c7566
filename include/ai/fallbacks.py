"""Fallback connections, which are asked when the provider of a connection gives no answer.

`{"fallback_conn_ids": ["other", "third"]}` in a connection's extra lists them, in order, as with
apache-airflow-providers-common-ai. Each has its own model, key, limits and price.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from pydantic_ai.exceptions import FallbackExceptionGroup, ModelAPIError
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel

from include.ai.connection import ModelSource
from include.ai.layers import LayeredModel
from include.ai.model import RequestRefused
from include.common.connection_extra import read_setting, setting_error

try:
    from include.ai import canary
except ImportError:  # a copied pattern may lack it
    canary = None  # type: ignore[assignment]

KEY = "fallback_conn_ids"
# If there is a fallback: long enough for a limit per minute to reset.
LONGEST_WAIT_BEFORE_FALLBACK_S = 60.0

log = logging.getLogger(__name__)


def falls_back(error: Exception) -> bool:
    """Return whether the next connection is asked: the provider gave no answer, and the request is not at fault.

    It is down, out of quota, too slow, or refuses the key or the model. A request that is refused for its content goes
    to no other provider. A connection that describes no model is an error to correct, and is not hidden.
    """
    unanswered = isinstance(error.__context__, ModelAPIError) and not isinstance(error, RequestRefused)
    if unanswered:
        log.warning("No answer. %s", error)
    return unanswered


def read_fallbacks(source: ModelSource) -> list[str]:
    """Read the ids of the fallback connections, in order.

    :raises AirflowFailException: they are not a list of ids of other connections.
    """
    stated = read_setting(source.conn_id, source.layer_args, KEY, list[str]) or []
    ids = [conn_id.strip() for conn_id in stated if conn_id.strip()]  # common-ai's form leaves empty lines
    if len({source.conn_id, *ids}) <= len(ids):
        raise setting_error(source.conn_id, f"{KEY}: they must be other connections, each listed once")
    return ids


class ConnectionChain(LayeredModel):
    """The model of a connection, and those of its fallbacks.

    :param conn_id: the first connection, unless its canary makes a run ask a candidate first.
    :param make: makes the model of one connection.
    """

    def __init__(self, conn_id: str, make: Callable[[str], LayeredModel]) -> None:
        super().__init__(conn_id)
        self._make = make
        self._chains: dict[str | None, tuple[list[LayeredModel], Model]] = {}  # by the canary's candidate

    @property
    def models(self) -> list[LayeredModel]:
        """The models, in order.

        :raises AirflowFailException: one of them cannot be built, which is found now and not in an outage.
        """
        return self._chain()[0]

    @property
    def wrapped(self) -> Model:  # type: ignore[override]
        """The one model, or all of them."""
        return self._chain()[1]

    def _chain(self) -> tuple[list[LayeredModel], Model]:
        candidate = canary.candidate(self.source) if canary else None
        if candidate not in self._chains:
            models = self._build(candidate)
            several = FallbackModel(*models, fallback_on=falls_back) if len(models) > 1 else models[0]
            self._chains[candidate] = (models, several)
        return self._chains[candidate]

    def _build(self, candidate: str | None) -> list[LayeredModel]:
        ids = [*([candidate] if candidate else []), self.conn_id, *read_fallbacks(self.source)]
        models = [self._make(conn_id) for conn_id in dict.fromkeys(ids)]
        for model in models:
            if model.conn_id == self.conn_id:
                continue
            if read_fallbacks(model.source):
                problem = f"{KEY}: those of a fallback are not followed: list all at {self.conn_id!r}"
                raise setting_error(model.conn_id, problem)
            _ = model.wrapped
        for model in models[:-1]:
            model.longest_wait_s = LONGEST_WAIT_BEFORE_FALLBACK_S
        return models

    async def request(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """Ask one model after the other.

        :raises AirflowFailException: no retry of the task can help.
        :raises AirflowException: a later try may succeed.
        """
        try:
            return await self.wrapped.request(*args, **kwargs)
        except FallbackExceptionGroup as group:
            errors: Sequence[Exception] = group.exceptions
        final = all(isinstance(error, AirflowFailException) for error in errors)
        failure = (AirflowFailException if final else AirflowException)(" ".join(map(str, errors)))
        failure.__context__, failure.__suppress_context__ = errors[0].__context__, True  # kept out of the log
        raise failure
