"""Traces of model calls, by OpenTelemetry, for the tool that a team already has.

They are on where OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) is set. All else of this project
only speaks OpenTelemetry's API, which does nothing where no traces are on; plugins/genai_traces.py begins them.
"""
