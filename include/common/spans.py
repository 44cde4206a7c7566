"""A span around a piece of work, which costs nothing where OpenTelemetry is not set up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

_tracer = trace.get_tracer("genai")


@contextmanager
def span(
    name: str, attributes: dict[str, Any], kind: SpanKind = SpanKind.INTERNAL, links: Sequence[Link] = ()
) -> Iterator[Span]:
    """Trace the block. Only the class of an error is recorded, as its text may quote a prompt."""
    quiet: Any = {"record_exception": False, "set_status_on_exception": False}
    with _tracer.start_as_current_span(name, kind=kind, attributes=attributes, links=links, **quiet) as current:
        try:
            yield current
        except BaseException as error:
            current.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
