"""The events of a job, which follow from its life as its status does."""

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from .life import STARTS, Job

FEW_EXAMPLES = 50


class Event(NamedTuple):
    """Something that happened to a job; `key` tells it from the job's other events."""

    key: str
    time: float
    message: str
    level: str = "info"
    data: dict[str, Any] | None = None


def job_events(job: Job, now: float) -> list[dict[str, Any]]:
    """What has happened so far, the newest first. What was listed once keeps its id and its place."""
    events = sorted([*_by_age(job, now), *_by_mark(job, now)], key=lambda event: event.time)
    return [_as_openai(job, event) for event in reversed([*events, *_at_end(job, now)])]


def _by_age(job: Job, now: float) -> Iterator[Event]:
    validated, started = (STARTS[status] * job.seconds for status in ("queued", "running"))
    planned = [
        (0.0, "created", "info", f"Created fine-tuning job: {job.id}"),
        (0.0, "validating", "info", f"Validating training file: {job.training_file}"),
        (validated, "validated", "info", "Files validated, moving job to queued state"),
        (started, "started", "info", "Fine-tuning job started"),
    ]
    if job.examples < FEW_EXAMPLES:
        message = f"The training file has {job.examples} examples; at least {FEW_EXAMPLES} are recommended."
        planned.insert(3, (validated, "few", "warn", message))
    age = job.age(now)
    for at, key, level, message in planned:
        if at <= age:
            yield Event(key, job.reached(at), message, level)
    for step in job.steps:
        at = started + (job.seconds - started) * 0.98 * step.number / job.total_steps
        if at > age:
            break
        message = f"Step {step.number}/{job.total_steps}: training loss={step.train_loss:.2f}"
        if step.valid_loss is not None:
            message += f", validation loss={step.valid_loss:.2f}"
        data = {"step": step.number, "total_steps": job.total_steps, "train_loss": step.train_loss}
        yield Event(f"step {step.number}", job.reached(at), message, data=data | {"valid_loss": step.valid_loss})


def _by_mark(job: Job, now: float) -> Iterator[Event]:
    for index, (before, mark) in enumerate(pairwise(job.marks)):
        if mark.status == "paused":
            yield Event(f"mark {index}", mark.wall, "Fine-tuning job paused")
        elif mark.status is None and before.status == "paused":
            yield Event(f"mark {index}", mark.wall, "Fine-tuning job resumed")


def _at_end(job: Job, now: float) -> Iterator[Event]:
    ended = job.ended_at(now)
    if ended is None:
        return
    status = job.status(now)
    if status == "succeeded":
        yield Event("model", ended, f"New fine-tuned model created: {job.tuned_model}")
        yield Event("end", ended, "The job has successfully completed")
    elif status == "failed":
        yield Event("end", ended, f"The job failed: {(job.error or {}).get('message')}", level="error")
    else:
        yield Event("end", ended, "The job has been cancelled")


def _as_openai(job: Job, event: Event) -> dict[str, Any]:
    digest = hashlib.blake2b(f"{job.id} {event.key}".encode(), digest_size=12).hexdigest()
    return {
        "object": "fine_tuning.job.event",
        "id": f"ftevent-{digest}",
        "created_at": int(event.time),
        "level": event.level,
        "message": event.message,
        "type": "message" if event.data is None else "metrics",
        "data": event.data or {},
    }
