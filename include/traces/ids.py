"""The ids of traces and spans that several processes need, worked out from what each of them knows of Airflow.

So all tasks of a run share a trace without exchanging anything. A cleared run starts over with another trace, as on
Airflow 3.3.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime


def run_trace_id(dag_id: str, run_id: str, started: datetime | None) -> int:
    """Return the id of a DAG run's trace; `started` also distinguishes runs of the same name in two deployments."""
    moment = started.astimezone(UTC).isoformat(timespec="microseconds") if started else ""
    return _id(16, "run", dag_id, run_id, moment)


def run_span_id(trace_id: int) -> int:
    """Return the id of the span of a trace's run."""
    return _id(8, "run", str(trace_id))


def attempt_span_id(task_instance_id: object) -> int:
    """Return the id of the span of an attempt of a task, whose `id` is new at every try."""
    return _id(8, "attempt", str(task_instance_id))


def job_span_id(key: str, job_id: str) -> int:
    """Return the id of the span of a paid job."""
    return _id(8, "job", key, job_id)


def _id(size: int, *parts: str) -> int:
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:size], "big") or 1  # 0 is not an id
