"""Traces of model calls, by OpenTelemetry, for the tool that a team already has.

They are on where OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) is set. The rest of this
project uses only OpenTelemetry's API, which does nothing where traces are off; plugins/genai_traces.py starts them.
"""
