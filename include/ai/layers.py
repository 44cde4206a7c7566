"""What a call of a connection's model has besides: usage, prices, budgets, limits, fallbacks, spans, stored answers.

`include.ai.model` takes this up where it is there. Each layer is a module that a copied pattern may lack.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import ModelRequestParameters

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
    from include.ai.model import ConnectionModel
    from include.ai.rate_limit import RateLimit


def layered_model(
    conn_id: str, make: Callable[[str], ConnectionModel] | None, budget_usd: float | None, reuse: str | timedelta
) -> ConnectionModel:
    """Return the model of a connection with its fallbacks, which is asked only what is not answered yet.

    :raises ValueError: an argument has no meaning, or the layer that it needs is not there.
    """
    from include.ai.model import ConnectionModel

    if budget_usd is not None and not (spending and budget_usd > 0):
        raise ValueError(f"budget_usd={budget_usd!r}: it is more than 0, and needs the layer spend.")
    if reuse not in ("retries", "try") and not attempt:
        raise ValueError(f"reuse={reuse!r} needs the layer reuse.")
    recorder = usage.UsageRecorder() if usage else None
    make = make or (lambda conn_id: ConnectionModel(conn_id, recorder, budget_usd))
    try:
        from include.ai.fallbacks import ConnectionChain
    except ImportError:
        model = make(conn_id)
    else:
        model = ConnectionChain(conn_id, make)
    return attempt.reusing(model, reuse) if attempt else model


def http_hooks(source: ModelSource, limit: RateLimit | None = None) -> dict[str, list[Any]]:
    """Return the hooks that have an HTTP client of a connection keep the account's limits.

    :param limit: keeps them; if not given, one is made where the connection states limits.
    :raises AirflowFailException: the limits or the price that the connection states make no sense: better known before
        anything is paid.
    """
    if usage:
        usage.stated_price(source)
    limit = limit or (account.account_limit(source) if account else None)
    return limit.hooks if limit else {}


async def begin(model: ConnectionModel, messages: list[ModelMessage], parameters: ModelRequestParameters) -> Call:
    """Begin a call of a chat model.

    :raises AirflowFailException: a budget is used up.
    """
    if spending and (meter := spending.due_meter(model.source, model.budget_usd)):
        await asyncio.to_thread(meter.check)
    return Call(model, messages, parameters)


class Call:
    """A call of a chat model, which may be repeated until it is answered."""

    def __init__(
        self, model: ConnectionModel, messages: list[ModelMessage], parameters: ModelRequestParameters
    ) -> None:
        self._model = model
        self._asked = (messages, parameters)
        self._started = time.monotonic()
        self._refused = 0

    def refused(self, error: ModelAPIError, *, is_last: bool) -> None:
        """Note that there was no answer, and whether the call ends so."""
        self._refused += 1
        if tracing:
            tracing.record_refusal(self._model.source, self._model.model_name, error)
        if is_last:
            self._record(None, self._refused)

    async def answered(self, response: ModelResponse) -> None:
        """Store the answer, then count what it cost."""
        source, recorder = self._model.source, self._model.usage_recorder
        used = usage.read_usage(source, response, time.monotonic() - self._started) if usage else None
        if attempt:
            await attempt.keep(source, response)
        if used and recorder:
            recorder.record(used)
        self._record(response)

    def _record(self, response: ModelResponse | None, calls: int = 1) -> None:
        seconds = time.monotonic() - self._started
        for layer in (spending, tracing):
            if layer:
                layer.record_chat(self._model.source, self._model.model_name, *self._asked, response, seconds, calls)


def begin_embedding(source: ModelSource) -> Callable[[EmbeddingResult | None], None]:
    """Begin a request for embeddings; return what records its vectors, or that there are none.

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
