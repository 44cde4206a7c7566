"""Traces of runs, tasks and model calls, where OTEL_EXPORTER_OTLP_ENDPOINT is set."""

from __future__ import annotations

from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

from include.traces.settings import traces_are_on


def listeners() -> list[Any]:
    """Return the listener to runs and tasks; nothing is imported where traces are off."""
    if not traces_are_on():
        return []
    from include.traces.listener import TaskSpans

    return [TaskSpans()]


class GenAITraces(AirflowPlugin):
    """Airflow's description of the traces."""

    name = "genai_traces"
    listeners: ClassVar[list[Any]] = listeners()
