"""The spans of runs and attempts of tasks, which Airflow 3.1 does not make; named as those of Airflow 3.3."""

from __future__ import annotations

import logging
import sys
from contextvars import Token
from typing import Any

from airflow.listeners import hookimpl
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, Status, StatusCode, TraceFlags

from include.common.shown import shown_text
from include.traces.ids import attempt_span_id, run_span_id, run_trace_id
from include.traces.sending import Telemetry, begin_sending, task_attributes, telemetry, with_ids
from include.traces.settings import trace_url

log = logging.getLogger(__name__)


class TaskSpans:
    """Makes spans when Airflow reports that a task or a run begins or ends.

    An attempt that defers has one span, which its last process sends: earlier spans already name it as their parent.
    """

    def __init__(self) -> None:
        self._span: Span | None = None
        self._token: Token[Context] | None = None
        self._ours: Telemetry | None = None

    @hookimpl
    def on_task_instance_running(self, task_instance: Any) -> None:
        try:
            self._begin(task_instance)
        except Exception as error:
            log.warning("The task continues without a trace: %s", shown_text(error))

    @hookimpl
    def on_task_instance_success(self) -> None:
        self._end("success")

    @hookimpl
    def on_task_instance_skipped(self) -> None:
        self._end("skipped")

    @hookimpl
    def on_task_instance_failed(self, error: Any) -> None:
        self._end("failed", type(error).__name__ if isinstance(error, BaseException) else "")

    @hookimpl
    def before_stopping(self) -> None:
        self._leave()
        if self._ours:
            self._ours.flush()

    @hookimpl
    def on_dag_run_success(self, dag_run: Any) -> None:
        send_run_span(dag_run, "success")

    @hookimpl
    def on_dag_run_failed(self, dag_run: Any) -> None:
        send_run_span(dag_run, "failed")

    def _begin(self, ti: Any) -> None:
        self._leave()
        if "pydantic_ai" in sys.modules:  # else `include.ai.tracing` does it, when it is imported
            from include.traces.agents import trace_agents

            trace_agents()
        task_attributes.update(
            {
                "airflow.dag_id": ti.dag_id,
                "airflow.task_id": ti.task_id,
                "airflow.dag_run.run_id": ti.run_id,
                "airflow.task_instance.try_number": ti.try_number,
                "airflow.task_instance.map_index": -1 if ti.map_index is None else ti.map_index,
                "airflow.task_instance.id": str(ti.id),
            }
        )
        self._ours = begin_sending()
        if self._ours:
            run = ti.get_template_context()["dag_run"]
            trace_id = run_trace_id(ti.dag_id, ti.run_id, run.start_date)
            mapped = f"[{ti.map_index}]" if (ti.map_index or 0) >= 0 and ti.map_index is not None else ""
            with with_ids(trace_id, attempt_span_id(ti.id)):
                self._span = trace.get_tracer(__name__).start_span(
                    f"worker.{ti.task_id}{mapped}", in_run(trace_id), start_time=_nanoseconds(ti.start_date)
                )
            self._token = context.attach(trace.set_span_in_context(self._span))
        trace_id = trace.get_current_span().get_span_context().trace_id
        log.info("Trace %s %s", trace.format_trace_id(trace_id), trace_url(trace.format_trace_id(trace_id)))

    def _end(self, state: str, error: str = "") -> None:
        if self._span:
            self._span.set_attribute("airflow.task_instance.state", state)
            if state == "failed":
                self._span.set_status(Status(StatusCode.ERROR, error))
            self._span.end()
        self._leave()

    def _leave(self) -> None:
        if self._token:
            context.detach(self._token)
        self._span = self._token = None
        task_attributes.clear()


def in_run(trace_id: int) -> Context:
    """Return the context of a run's span, with the same sampling decision in every process."""
    sampler = telemetry().tracers.sampler
    is_sampled = sampler.should_sample(Context(), trace_id, "dag_run").decision is Decision.RECORD_AND_SAMPLE
    flags = TraceFlags(TraceFlags.SAMPLED if is_sampled else TraceFlags.DEFAULT)
    return trace.set_span_in_context(
        NonRecordingSpan(SpanContext(trace_id, run_span_id(trace_id), is_remote=True, trace_flags=flags))
    )


def send_run_span(run: Any, state: str) -> None:
    """Send the span of a run that has ended, from the process that ends it, unless Airflow 3.3 sends its own."""
    if isinstance(trace.get_tracer_provider(), TracerProvider) and not begin_sending():
        return
    trace_id = run_trace_id(run.dag_id, run.run_id, run.start_date)
    with with_ids(trace_id, run_span_id(trace_id)):
        span = (
            telemetry()
            .tracers.get_tracer(__name__)
            .start_span(
                f"dag_run.{run.dag_id}",
                Context(),
                start_time=_nanoseconds(run.start_date),
                attributes={
                    "airflow.dag_id": run.dag_id,
                    "airflow.dag_run.run_id": run.run_id,
                    "airflow.dag_run.run_type": str(getattr(run.run_type, "value", run.run_type)),
                    "airflow.dag_run.state": state,
                },
            )
        )
    span.set_status(StatusCode.OK if state == "success" else StatusCode.ERROR)
    span.end(_nanoseconds(run.end_date))


def _nanoseconds(moment: Any) -> int | None:
    return int(moment.timestamp() * 1e6) * 1000 if moment else None
