"""What a model's call costs: into the ledger (`include.spend.ledger`), and within budgets (`include.spend.budgets`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_ai.messages import ModelMessage, ModelResponse

from include.ai.prompts import prompt_of
from include.ai.usage import listed_cost, stated_price
from include.common.prices import tokens_cost
from include.common.task_context import task_context
from include.spend.budgets import Budgets, Meter, read_budgets
from include.spend.ledger import Call, record, the_ledger

if TYPE_CHECKING:
    from pydantic_ai.embeddings import EmbeddingResult
    from pydantic_ai.models import ModelRequestParameters

    from include.ai.connection import ModelSource


_meters: dict[tuple[str, str], Meter | None] = {}


def meter_of(source: ModelSource, task_usd: float | None = None) -> Meter | None:
    """Return the meter of a connection for the running task; None if nothing limits its cost.

    :raises AirflowFailException: the connection's budgets are not valid.
    """
    context = task_context()
    key = (str(context["ti"].id) if context else "", source.conn_id)
    if key not in _meters:
        budgets, meter = read_budgets(source.conn_id, source.layer_args), None
        if budgets or task_usd:
            name = source.model_id.partition(":")[2]
            cost = tokens_cost(source.conn_id, source.layer_args, name, 1, 1)
            meter = Meter(source.conn_id, budgets or Budgets(), task_usd, unpriced=name if cost is None else "")
            the_ledger().open_storage()
            the_ledger().also_write(meter.save)
        _meters[key] = meter
    return _meters[key]


def due_meter(source: ModelSource, task_usd: float | None = None) -> Meter | None:
    """Return the meter to check before a call; None without a limit, or if it was checked within the last second."""
    meter = meter_of(source, task_usd)
    return meter if meter and not meter.is_fresh else None


def record_chat(
    source: ModelSource,
    model: str,
    messages: list[ModelMessage],
    parameters: ModelRequestParameters,
    response: ModelResponse | None,
    seconds: float,
    calls: int = 1,
) -> None:
    """Record a call of a chat model: its answer, or `calls` calls without one."""
    call = _chat(source, model, messages, parameters, response)
    call = call._replace(calls=calls, seconds=seconds, failed=not response)
    if response:
        usage = response.usage
        call = call._replace(
            input_tokens=usage.input_tokens,
            cached_tokens=usage.cache_read_tokens,
            output_tokens=usage.output_tokens,
            cost_usd=None if usage.cost is None else float(usage.cost),
        )
    _count(source, call)


def record_reused(
    source: ModelSource, messages: list[ModelMessage], parameters: ModelRequestParameters, response: ModelResponse
) -> None:
    """Record a call of a chat model that a stored answer served."""
    saved = 0.0 if response.usage.cost is None else float(response.usage.cost)
    call = _chat(source, source.model_id.partition(":")[2], messages, parameters, response)
    record(call._replace(calls=0, cost_usd=0.0, reused=1, saved_usd=saved))


def record_embedding(source: ModelSource, result: EmbeddingResult | None, seconds: float) -> None:
    """Record a request for embeddings: its vectors, or that there are none."""
    call = Call("embedding", source.conn_id, source.model_id, seconds=seconds, failed=result is None)
    if result:
        price = stated_price(source)
        tokens = result.usage.input_tokens
        cost = price.cost(tokens, 0) if price else listed_cost(result)
        call = call._replace(model=result.model_name, input_tokens=tokens, cost_usd=cost)
    _count(source, call)


def _chat(
    source: ModelSource,
    model: str,
    messages: list[ModelMessage],
    parameters: ModelRequestParameters,
    response: ModelResponse | None,
) -> Call:
    """Return a call without its numbers, with the model's name from the answer, or else this one."""
    name = (response and response.model_name) or model
    return Call("chat", source.conn_id, name, prompt_of(messages, parameters))


def _count(source: ModelSource, call: Call) -> None:
    if (meter := meter_of(source)) and not call.failed:
        meter.add(call.cost_usd, call.model)
    record(call)
