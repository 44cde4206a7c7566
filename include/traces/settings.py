"""What the environment says about traces. Every process of Airflow imports this: it costs nothing."""

from __future__ import annotations

import os

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
METRICS_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
# OpenTelemetry's own variable for GenAI: with it, spans also hold the text of prompts and answers.
CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
# Where the tool shows a trace: a URL with {trace_id} in it.
TRACE_URL = "GENAI_TRACE_URL"


def traces_are_on() -> bool:
    """Return whether spans are to be sent."""
    return _is_sent("OTEL_TRACES_EXPORTER", ENDPOINTS)


def metrics_are_on() -> bool:
    """Return whether metrics are to be sent."""
    return _is_sent("OTEL_METRICS_EXPORTER", METRICS_ENDPOINTS)


def _is_sent(exporter: str, endpoints: tuple[str, ...]) -> bool:
    is_off = _says("OTEL_SDK_DISABLED", "true") or _says(exporter, "none")
    return not is_off and any(os.environ.get(name) for name in endpoints)


def content_is_wanted() -> bool:
    """Return whether spans are to hold the text of prompts and answers."""
    return _says(CONTENT, "true")


def trace_url(trace_id: str) -> str:
    """Return where the tool shows a trace; empty if TRACE_URL is not set to a URL with {trace_id}."""
    template = os.environ.get(TRACE_URL, "")
    is_one = template.startswith(("http://", "https://")) and "{trace_id}" in template
    return template.replace("{trace_id}", trace_id) if is_one else ""


def _says(name: str, value: str) -> bool:
    return os.environ.get(name, "").strip().lower() == value
