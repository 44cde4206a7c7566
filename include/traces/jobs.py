"""The span of a paid job at a provider, from its creation to its end, across all processes that work on it."""

from __future__ import annotations

import time

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from include.traces.ids import job_span_id
from include.traces.settings import traces_are_on


def send_job_span(kind: str, conn_id: str, key: str, job_id: str, status: str, created_at: float) -> None:
    """Send the span of a job that has ended.

    Its id is the same each time, as a cleared task looks at the end of the same job again.

    :param kind: what the provider does.
    :param key: whose job it is.
    :param created_at: seconds since the epoch.
    """
    if not traces_are_on():
        return
    from include.traces.sending import with_ids  # the SDK, which no DAG file may import

    attributes = {
        "genai.job.kind": kind,
        "airflow.connection.id": conn_id,
        "genai.job.id": job_id,
        "genai.job.status": status,
    }
    parent = trace.get_current_span().get_span_context()
    with with_ids(parent.trace_id, job_span_id(key, job_id)):
        span = trace.get_tracer("genai").start_span(
            f"job {kind}", start_time=int(created_at * 1e9), kind=SpanKind.CLIENT, attributes=attributes
        )
    if status != "succeeded":
        span.set_status(Status(StatusCode.ERROR, status))
    span.end(int(max(time.time(), created_at) * 1e9))
