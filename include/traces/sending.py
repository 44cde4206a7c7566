"""OpenTelemetry's SDK for this process: what sends spans and metrics, and how long a task waits for it."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib import import_module
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from include.common.shown import shown_url
from include.traces.settings import ENDPOINTS, metrics_are_on

# How long the end of a task waits, at most, for what is not sent yet.
LONGEST_FLUSH_S = 2.0
TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"

# The attributes of the running task, which every span of this process gets.
task_attributes: dict[str, Any] = {}
_given_ids: ContextVar[tuple[int, int] | None] = ContextVar("given_ids", default=None)

log = logging.getLogger(__name__)


class GivenIds(RandomIdGenerator):
    """Makes the ids of spans, unless `with_ids` gives them."""

    def generate_trace_id(self) -> int:
        given = _given_ids.get()
        return given[0] if given else super().generate_trace_id()

    def generate_span_id(self) -> int:
        given = _given_ids.get()
        return given[1] if given else super().generate_span_id()


@contextmanager
def with_ids(trace_id: int, span_id: int) -> Iterator[None]:
    """Give the span that the block starts these ids; that of the trace only if the span is the first of its trace."""
    token = _given_ids.set((trace_id, span_id))
    try:
        yield
    finally:
        _given_ids.reset(token)


class TaskSpanProcessor(SpanProcessor):
    """Adds the attributes of the running task to each span."""

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        span.set_attributes(task_attributes)


class QuietExporter(SpanExporter):
    """An exporter that warns once, in plain words, if it cannot send."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._has_warned = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self.warn()
        return result

    def warn(self) -> None:
        """Warn, the first time, that spans are lost."""
        if not self._has_warned:
            where = next((shown_url(os.environ[name]) for name in reversed(ENDPOINTS) if os.environ.get(name)), "")
            log.warning("The task continues, but its trace is incomplete: %s does not accept it.", where)
        self._has_warned = True

    def shutdown(self) -> None:
        self._exporter.shutdown()


class Telemetry:
    """What sends the spans and metrics of this process."""

    def __init__(self) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # several lines per failure, with the URL
        self._exporter = QuietExporter(_exporter("trace_exporter", "OTLPSpanExporter", "TRACES"))
        self.tracers = TracerProvider(id_generator=GivenIds(), shutdown_on_exit=False)
        self.tracers.add_span_processor(TaskSpanProcessor())
        self.tracers.add_span_processor(BatchSpanProcessor(self._exporter))
        self.meters: MeterProvider | None = None
        if metrics_are_on():
            # A task's process ends before it has sent twice: cumulative sums would be useless.
            os.environ.setdefault(TEMPORALITY, "delta")
            reader = PeriodicExportingMetricReader(_exporter("metric_exporter", "OTLPMetricExporter", "METRICS"))
            self.meters = MeterProvider([reader], shutdown_on_exit=False)
        atexit.register(self.flush)

    def flush(self) -> None:
        """Send what is not sent yet, and wait at most LONGEST_FLUSH_S seconds for it."""
        ends = time.monotonic() + LONGEST_FLUSH_S
        threads = [
            threading.Thread(target=provider.force_flush, daemon=True)
            for provider in (self.tracers, self.meters)
            if provider
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
        if threads[0].is_alive():
            self._exporter.warn()


def _exporter(module: str, name: str, signal: str) -> Any:
    """Make OpenTelemetry's own exporter, which reads the standard variables."""
    protocol = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    kind = "grpc" if protocol == "grpc" else "http"
    return getattr(import_module(f"opentelemetry.exporter.otlp.proto.{kind}.{module}"), name)()


@lru_cache(maxsize=1)
def _telemetry_of(process: int) -> Telemetry:
    return Telemetry()


def telemetry() -> Telemetry:
    """Return the telemetry of this process, which may be a fork of another."""
    return _telemetry_of(os.getpid())


@lru_cache(maxsize=1)
def begin_sending() -> Telemetry | None:
    """Have this process send what it traces; return None if something else does, as Airflow 3.3 with its own traces."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.add_span_processor(TaskSpanProcessor())
        return None
    ours = telemetry()
    trace.set_tracer_provider(ours.tracers)
    if ours.meters:
        metrics.set_meter_provider(ours.meters)
    return ours
