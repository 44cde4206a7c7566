"""The layers of a model call: repeats, usage, budgets, limits, fallbacks, spans, stored answers.

`include.ai.model` uses this module if it exists. Each layer is a module that a copied pattern may lack.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ModelSettings

from include.ai import repeats
from include.ai.model import ConnectionModel

try:
    from include.ai import account
except ImportError:
    account = None  # type: ignore[assignment]
try:
    from include.ai import attempt
except ImportError:
    attempt = None  # type: ignore[assignment]
try:
    from include.ai import usage
except ImportError:
    usage = None  # type: ignore[assignment]
try:
    from include.ai import spending
except ImportError:
    spending = None  # type: ignore[assignment]
try:
    from include.ai import tracing
except ImportError:
    tracing = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from pydantic_ai.embeddings import EmbeddingResult

    from include.ai.connection import ModelSource
    from include.ai.rate_limit import RateLimit
    from include.ai.usage import UsageRecorder

log = logging.getLogger(__name__)


class LayeredModel(ConnectionModel):
    """The model of a connection, with the layers.

    :param usage_recorder: records every answered call.
    :param budget_usd: what a task may spend on it, in US dollars; None for no limit but the connection's.
    """

    # The limit that the calls keep; None for the connection's, if it sets one.
    rate_limit: RateLimit | None = None
    longest_wait_s = repeats.LONGEST_WAIT_S

    def __init__(
        self, conn_id: str, usage_recorder: UsageRecorder | None = None, budget_usd: float | None = None
    ) -> None:
        super().__init__(conn_id)
        self.usage_recorder = usage_recorder
        self.budget_usd = budget_usd

    @property
    def models(self) -> list[LayeredModel]:
        """The models that may answer: this one."""
        return [self]

    def http_hooks(self) -> dict[str, list[Any]]:
        """Return the hooks that make the model's HTTP client keep the account's limits: see `http_hooks`."""
        return http_hooks(self.source, self.rate_limit)

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Call the model, repeat the call while that may help, and record its usage.

        :raises AirflowFailException: a budget is used up, or no retry of the task can help.
        :raises AirflowException: a later try may succeed.
        """
        if spending and (meter := spending.due_meter(self.source, self.budget_usd)):
            await asyncio.to_thread(meter.check)
        settings: Any = {**(model_settings or {}), "max_retries": 0}  # of the provider's own client
        call = Call(self, messages, model_request_parameters)
        waited = 0.0
        while True:
            try:
                response = await super().request(messages, settings, model_request_parameters)
                break
            except AirflowException as failure:
                wait = call.refused(failure, self.longest_wait_s - waited)
                if wait is None:
                    raise
            if wait > max(repeats.PAUSES_S):
                log.info("Connection %r: asked to wait %.0f s before the next call.", self.conn_id, wait)
            waited += wait
            await asyncio.sleep(wait)
        await call.answered(response)
        return response

    def record_reused(
        self, messages: list[ModelMessage], parameters: ModelRequestParameters, response: ModelResponse
    ) -> None:
        """Record in `llm_usage` and in the ledger what a stored answer saved."""
        if usage and self.usage_recorder:
            self.usage_recorder.record(usage.reused_usage(response))
        if spending:
            spending.record_reused(self.source, messages, parameters, response)


def layered_model(
    conn_id: str,
    make: Callable[[str], LayeredModel] | None = None,
    budget_usd: float | None = None,
    reuse: str | timedelta = "retries",
) -> LayeredModel:
    """Return the model of a connection with its fallbacks, which is only asked what has no stored answer yet.

    :param make: makes the model of one connection, if not a plain one.
    :param budget_usd: what a task may spend on each connection, in US dollars.
    :param reuse: who may reuse a paid answer: see `include.ai.llm_kwargs`.
    :raises ValueError: an argument is not valid, or the layer that it needs is missing.
    """
    if budget_usd is not None and not (spending and budget_usd > 0):
        raise ValueError(f"budget_usd={budget_usd!r}: it must be more than 0, and it needs the layer spend.")
    if reuse not in ("retries", "try") and not attempt:
        raise ValueError(f"reuse={reuse!r} needs the layer reuse.")
    recorder = usage.UsageRecorder() if usage else None
    make = make or (lambda conn_id: LayeredModel(conn_id, recorder, budget_usd))
    try:
        from include.ai.fallbacks import ConnectionChain
    except ImportError:
        model = make(conn_id)
    else:
        model = ConnectionChain(conn_id, make)
    return attempt.reusing(model, reuse) if attempt else model


def http_hooks(source: ModelSource, limit: RateLimit | None = None) -> dict[str, list[Any]]:
    """Return the hooks that make an HTTP client of a connection keep the account's limits.

    :param limit: keeps them; by default one is made if the connection sets limits.
    :raises AirflowFailException: the connection's limits or price are not valid, which is checked before anything is
        paid.
    """
    if usage:
        usage.stated_price(source)
    limit = limit or (account.account_limit(source) if account else None)
    return limit.hooks if limit else {}


class Call:
    """A call of a chat model, which may be repeated until it is answered."""

    def __init__(self, model: LayeredModel, messages: list[ModelMessage], parameters: ModelRequestParameters) -> None:
        self._model = model
        self._asked = (messages, parameters)
        self._started = time.monotonic()
        self._refused = 0

    def refused(self, failure: AirflowException, patience: float) -> float | None:
        """Record that there was no answer; return the seconds until the next call, None if there is none.

        :param patience: how many seconds the provider may still ask to wait.
        """
        error = failure.__context__
        if not isinstance(error, ModelAPIError):
            return None
        self._refused += 1
        if tracing:
            tracing.record_refusal(self._model.source, self._model.model_name, error)
        is_final = isinstance(failure, AirflowFailException)
        wait = None if is_final else repeats.next_wait(error, self._refused, patience)
        if wait is None:
            self._record(None, self._refused)
        return wait

    async def answered(self, response: ModelResponse) -> None:
        """Store the answer, then record what it cost."""
        source, recorder = self._model.source, self._model.usage_recorder
        used = usage.read_usage(source, response, time.monotonic() - self._started) if usage else None
        if attempt and (store := attempt.keep_answer.get()):
            await store(source, response)
        if used and recorder:
            recorder.record(used)
        self._record(response)

    def _record(self, response: ModelResponse | None, calls: int = 1) -> None:
        seconds = time.monotonic() - self._started
        for layer in (spending, tracing):
            if layer:
                layer.record_chat(self._model.source, self._model.model_name, *self._asked, response, seconds, calls)


def begin_embedding(source: ModelSource) -> Callable[[EmbeddingResult | None], None]:
    """Begin a request for embeddings; return a function that records its vectors, or that there are none.

    :raises AirflowFailException: a budget is used up.
    """
    if spending and (meter := spending.due_meter(source)):
        meter.check()
    started = time.monotonic()

    def record(result: EmbeddingResult | None) -> None:
        for layer in (spending, tracing):
            if layer:
                layer.record_embedding(source, result, time.monotonic() - started)

    return record
