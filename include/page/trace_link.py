"""Where the team's tool shows the trace of a run."""

from __future__ import annotations

from typing import Any

from airflow.configuration import conf
from airflow.models import dagrun
from opentelemetry.trace import format_trace_id

from include.traces.ids import run_trace_id
from include.traces.settings import trace_url


def trace_link(run: Any) -> str:
    """Return the URL of a run's trace; empty if no tool is set or the run has not begun."""
    if not run.start_date:
        return ""
    if hasattr(dagrun, "new_dagrun_trace_carrier") and conf.getboolean("traces", "otel_on", fallback=False):
        return trace_url(run.context_carrier["traceparent"].split("-")[1])  # Airflow 3.3 makes the trace
    return trace_url(format_trace_id(run_trace_id(run.dag_id, run.run_id, run.start_date)))
