"""The spans of agents, model calls, tools and embeddings: pydantic-ai's own, as spans and not as metrics."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Literal

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import Span
from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.instrumented import InstrumentationSettings

from include.traces.settings import content_is_wanted

# pydantic-ai's format of the data, fixed so that an update of it does not change what dashboards read.
FORMAT: Literal[5] = 5


class AgentSpans(InstrumentationSettings):
    """pydantic-ai's spans, in which an answer that is reused says so."""

    def handle_messages(
        self, input_messages: Any, response: ModelResponse, span: Span, *args: Any, **kwargs: Any
    ) -> None:
        super().handle_messages(input_messages, response, span, *args, **kwargs)
        if reused_from := (response.metadata or {}).get("reused_from"):
            span.set_attribute("genai.reused_from", json.dumps(reused_from, default=str))


@cache
def trace_agents() -> AgentSpans:
    """Have pydantic-ai make spans in this process, wherever agents and embedders are made; return how."""
    from pydantic_ai.embeddings import Embedder

    # Its metrics do not say which DAG it was: `include.ai.tracing` makes them.
    settings = AgentSpans(
        version=FORMAT,
        include_content=content_is_wanted(),
        include_binary_content=False,
        include_model_request_parameters=False,
        meter_provider=NoOpMeterProvider(),
    )
    Agent.instrument_all(settings)
    Embedder.instrument_all(settings)
    return settings
