"""Spans and metrics of model calls: see `include.traces`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.instrumented import instrument_model

from include.ai.prompts import prompt_of
from include.ai.repeats import REFUSED_FOR_LOAD
from include.traces.agents import trace_agents
from include.traces.settings import traces_are_on

if TYPE_CHECKING:
    from pydantic_ai.embeddings import EmbeddingResult
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models import Model, ModelRequestParameters

    from include.ai.connection import ModelSource

_meter = metrics.get_meter("genai")
_calls = _meter.create_counter("genai.calls", "{call}", "Calls of models")
_refusals = _meter.create_counter("genai.refusals", "{refusal}", "Calls that a provider refused for load")
_cost = _meter.create_counter("genai.cost", "{USD}", "What calls cost, where the price is known")
_seconds = _meter.create_histogram("gen_ai.client.operation.duration", "s", "How long a call took, with its repeats")
_tokens = _meter.create_histogram("gen_ai.client.token.usage", "{token}", "Tokens of a call")

if traces_are_on():
    trace_agents()


def traced(model: Model) -> Model:
    """Return a model whose requests are spans even without an agent."""
    return instrument_model(model, trace_agents()) if traces_are_on() else model


def record_chat(
    source: ModelSource,
    model: str,
    messages: list[ModelMessage],
    parameters: ModelRequestParameters,
    response: ModelResponse | None,
    seconds: float,
    calls: int = 1,
) -> None:
    """Record a call of a chat model on its span and in the metrics: its answer, or `calls` calls without one."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attribute("airflow.connection.id", source.conn_id)
        span.set_attribute("genai.prompt.fingerprint", prompt_of(messages, parameters))
    labels = _labels(source, "chat", model)
    if response:
        cost = None if response.usage.cost is None else float(response.usage.cost)
        _count(labels, seconds, calls, response.usage.input_tokens, response.usage.output_tokens, cost)
    else:
        _count(labels | {"error.type": "no answer"}, seconds, calls)


def record_embedding(source: ModelSource, result: EmbeddingResult | None, seconds: float) -> None:
    """Record a request for embeddings in the metrics: its vectors, or that there are none."""
    labels = _labels(source, "embeddings", source.model_id.partition(":")[2])
    if result:
        _count(labels, seconds, 1, result.usage.input_tokens)
    else:
        _count(labels | {"error.type": "no answer"}, seconds, 1)


def record_refusal(source: ModelSource, model: str, error: Exception) -> None:
    """Record that the provider gave no answer to a call, which may be repeated."""
    status = error.status_code if isinstance(error, ModelHTTPError) else None
    trace.get_current_span().add_event("no answer", {"error.type": str(status or type(error).__name__)})
    if status in REFUSED_FOR_LOAD:
        _refusals.add(1, _labels(source, "chat", model))


def _labels(source: ModelSource, operation: str, model: str) -> dict[str, Any]:
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.request.model": model,
        "airflow.connection.id": source.conn_id,
        "airflow.dag_id": os.environ.get("AIRFLOW_CTX_DAG_ID", ""),
    }


def _count(
    labels: dict[str, Any],
    seconds: float,
    calls: int,
    input_tokens: int = 0,
    output_tokens: int = 0,
    cost_usd: float | None = None,
) -> None:
    _calls.add(calls, labels)
    _seconds.record(seconds, labels)
    for kind, tokens in (("input", input_tokens), ("output", output_tokens)):
        if tokens:
            _tokens.record(tokens, {**labels, "gen_ai.token.type": kind})
    if cost_usd:
        _cost.add(cost_usd, labels)
