"""The spans of a batch: one for each chunk of rows, with its counts, and those of calls for a sample of the rows."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, Status, StatusCode, TraceFlags

# The share of the rows, from 0 to 1, whose calls have spans of their own.
TRACED_ROWS = "GENAI_TRACED_ROWS"
DEFAULT_SHARE = 0.01

_tracer = trace.get_tracer("genai")


def traced_share() -> float:
    """Return the share of the rows whose calls have spans of their own; DEFAULT_SHARE if the setting is not valid."""
    try:
        share = float(os.environ.get(TRACED_ROWS) or DEFAULT_SHARE)
    except ValueError:
        return DEFAULT_SHARE
    return share if 0 <= share <= 1 else DEFAULT_SHARE


class ChunkSpans:
    """The spans of the chunks that a task works on, by the chunks' names."""

    def __init__(self) -> None:
        self._share = traced_share()
        self._open: dict[str, tuple[Span, dict[str, float]]] = {}

    @contextmanager
    def row(self, chunk: str, number: int) -> Iterator[None]:
        """Trace the calls for a row below its chunk's span, if the row is in the sample: the same rows at each try."""
        if chunk not in self._open:
            self._open[chunk] = _tracer.start_span("chunk", attributes={"genai.chunk": chunk}), {}
        parent = self._open[chunk][0]
        if zlib.crc32(str(number).encode()) / 2**32 >= self._share:
            of_chunk = parent.get_span_context()
            flags = TraceFlags(TraceFlags.DEFAULT)  # not sampled, nor is anything below it
            parent = NonRecordingSpan(
                SpanContext(of_chunk.trace_id, of_chunk.span_id, is_remote=False, trace_flags=flags)
            )
        token = context.attach(trace.set_span_in_context(parent))
        try:
            yield
        finally:
            context.detach(token)

    def add(self, chunk: str, result: Any) -> None:
        """Count a row that is done: an `include.batch.rows.Result`."""
        counts = self._open[chunk][1]
        more = {
            "genai.rows.done": 1,
            "genai.rows.failed": 1 if result.error_class else 0,
            "genai.rows.calls": result.calls,
            "gen_ai.aggregated_usage.input_tokens": result.input_tokens,
            "gen_ai.aggregated_usage.output_tokens": result.output_tokens,
            "genai.rows.cost_usd": result.cost_usd or 0.0,
        }
        for name, count in more.items():
            counts[name] = counts.get(name, 0) + count

    def end(self, chunk: str, is_complete: bool = True) -> None:
        """End the span of a chunk, whose rows are all done or left to a later try."""
        span, counts = self._open.pop(chunk)
        span.set_attributes(counts)
        if not is_complete:
            span.set_status(Status(StatusCode.ERROR, "rows are left"))
        span.end()

    def end_all(self) -> None:
        """End the spans of the chunks that are not complete when the task ends."""
        for chunk in list(self._open):
            self.end(chunk, is_complete=False)
