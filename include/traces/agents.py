"""The spans of agents, model calls, tools and embeddings: pydantic-ai's own, without secrets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

from airflow.sdk.log import redact  # type: ignore[attr-defined]
from opentelemetry import trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import Span, SpanContext, Tracer, use_span
from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.instrumented import InstrumentationSettings

from include.traces.settings import content_is_wanted

# pydantic-ai's format of the data, fixed so that an update of it does not change what dashboards read.
FORMAT: Literal[5] = 5
REUSED_FROM = "genai.reused_from"


class AgentSpan(Span):
    """A span that shows no secret that Airflow knows, and in which a reused answer does not count as a call."""

    def __init__(self, span: Span) -> None:
        self._span = span

    @property
    def attributes(self) -> Mapping[str, Any]:
        """What is recorded so far."""
        return getattr(self._span, "attributes", None) or {}

    def get_span_context(self) -> SpanContext:
        return self._span.get_span_context()

    def is_recording(self) -> bool:
        return self._span.is_recording()

    def set_attribute(self, key: str, value: Any) -> None:
        self._span.set_attribute(key, redact(value))

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        safe: Any = {key: redact(value) for key, value in (attributes or {}).items()}
        self._span.add_event(name, safe, timestamp)

    def update_name(self, name: str) -> None:
        self._span.update_name(name)

    def set_status(self, *args: Any, **kwargs: Any) -> None:
        self._span.set_status(*args, **kwargs)

    def record_exception(self, exception: BaseException, *_: Any, **__: Any) -> None:
        self.add_event("exception", {"exception.type": type(exception).__name__})

    def end(self, end_time: int | None = None) -> None:
        if REUSED_FROM in self.attributes:
            self.update_name(f"reused {self.attributes.get('gen_ai.request.model', 'answer')}")
            self.set_attribute("gen_ai.operation.name", "reuse")
            for name in list(self.attributes):
                if name == "operation.cost" or name.startswith("gen_ai.usage."):
                    self.set_attribute(name, 0)
        self._span.end(end_time)


class AgentTracer(Tracer):
    """Makes spans of the class `AgentSpan`."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def start_span(self, *args: Any, attributes: Any = None, **kwargs: Any) -> Span:
        span = AgentSpan(self._tracer.start_span(*args, **kwargs))
        span.set_attributes(attributes or {})
        return span

    @contextmanager
    def start_as_current_span(  # type: ignore[override]
        self,
        *args: Any,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
        **kwargs: Any,
    ) -> Iterator[Span]:
        with use_span(self.start_span(*args, **kwargs), end_on_exit, record_exception, set_status_on_exception) as span:
            yield span


class AgentSpans(InstrumentationSettings):
    """How pydantic-ai makes spans."""

    def __init__(self) -> None:
        # pydantic-ai's metrics do not name the DAG: `include.ai.tracing` makes them.
        super().__init__(
            version=FORMAT,
            include_content=content_is_wanted(),
            include_binary_content=False,
            include_model_request_parameters=False,
            meter_provider=NoOpMeterProvider(),
        )
        self.tracer = AgentTracer(trace.get_tracer("pydantic-ai"))

    def handle_messages(
        self, input_messages: Any, response: ModelResponse, span: Span, *args: Any, **kwargs: Any
    ) -> None:
        super().handle_messages(input_messages, response, span, *args, **kwargs)
        if reused_from := (response.metadata or {}).get("reused_from"):
            span.set_attribute(REUSED_FROM, json.dumps(reused_from, default=str))


@cache
def trace_agents() -> AgentSpans:
    """Have pydantic-ai make spans for all agents and embedders of this process; return the settings."""
    from pydantic_ai.embeddings import Embedder

    settings = AgentSpans()
    Agent.instrument_all(settings)
    Embedder.instrument_all(settings)
    return settings
