"""Wait for a job's end, or cancel it."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

from include.jobs.job import Job, JobApi, Outcome
from include.jobs.service import describe, is_passing

LONGEST_PAUSE_S = 60.0
# Consecutive non-retryable errors (a refused key, an unknown job) after which the wait ends.
MOST_REFUSALS = 5
CANCEL_ATTEMPTS = 4

log = logging.getLogger(__name__)


async def cancel(api: JobApi, job_id: str) -> Job | None:
    """Cancel the job, in several attempts, and return its state after that; None if it may still be going on.

    A provider refuses to cancel a job that has ended: that is not an error.
    """
    service = await api.service()
    for attempt in range(CANCEL_ATTEMPTS):
        try:
            await api.cancel(job_id)
        except Exception as error:
            refusal = describe(error)
        else:
            refusal = ""
            log.info("%s: job %s is cancelled.", service, job_id)
        try:
            job = await api.get(job_id)
        except Exception as error:
            log.warning("%s: job %s cannot be seen: %s.", service, job_id, describe(error))
        else:
            if not job.is_going:
                return job
            if refusal:
                log.warning("%s: job %s cannot be cancelled: %s.", service, job_id, refusal)
        if attempt + 1 < CANCEL_ATTEMPTS:
            await asyncio.sleep(2**attempt)
    log.error("%s: job %s may go on, and cost money: cancel it at the provider.", service, job_id)
    return None


async def wait_for_job(
    api: JobApi, job_id: str, *, poke_interval: float, deadline: float, cancel_on_timeout: bool
) -> Outcome:
    """Look at the job until it has ended or the deadline has passed.

    Temporary errors are waited out, up to the deadline: the job costs the same, watched or not.

    :param poke_interval: shortest pause between two looks, in seconds; it grows to a minute with the job's age.
    :param deadline: seconds since the epoch by the provider's clock, which is the same for every process.
    :param cancel_on_timeout: cancel a job that is still going on at the deadline.
    """
    job: Job | None = None
    news: dict[str, Any] = {}
    refusals = 0
    while True:
        pause = poke_interval
        try:
            seen = await api.get(job_id)
            await api.relay_news(seen, news)
        except Exception as error:
            problem = describe(error)
            log.warning("Job %s: %s.", job_id, problem)
            pause = max(2 * poke_interval, _retry_after(error))
            refusals = 0 if is_passing(error) else refusals + 1
            if refusals:
                api.forget_key()  # keys change
            if refusals == MOST_REFUSALS:
                message = f"job {job_id} goes on, but nothing waits for it any more: {problem}"
                return Outcome(status="unreachable", job_id=job_id, message=message, job=job)
        else:
            refusals = 0
            _log_change(api, job, seen)
            job = seen
            if job.has_ended:
                return Outcome(status="ended", job_id=job_id, job=job)
            pause = max(pause, (api.now() - job.created_at) / 20)
        left = deadline - api.now()
        if left <= 0:
            return await _timed_out(api, job_id, job, cancel_on_timeout)
        # So that jobs that were started together are not all looked at together.
        await asyncio.sleep(min(left, LONGEST_PAUSE_S, pause) * random.uniform(0.9, 1.0))  # noqa: S311


async def _timed_out(api: JobApi, job_id: str, job: Job | None, cancel_on_timeout: bool) -> Outcome:
    if not cancel_on_timeout:
        message = f"job {job_id} has not ended in time. It goes on: clear this task to wait for it again"
        return Outcome(status="timed_out", job_id=job_id, message=message, job=job)
    job = await cancel(api, job_id)
    if job and job.has_ended and job.status != "cancelled":
        return Outcome(status="ended", job_id=job_id, job=job)
    fate = "was cancelled" if job else "could not be cancelled and may go on: cancel it at the provider"
    return Outcome(status="timed_out", job_id=job_id, message=f"job {job_id} has not ended in time. It {fate}", job=job)


def _log_change(api: JobApi, before: Job | None, now: Job) -> None:
    if before and before.status == now.status:
        return
    if now.status in api.underway or now.has_ended:
        log.info("Job %s: %s.", now.id, now.status)
    elif now.status == "paused":
        log.warning("Job %s is paused at the provider: resume or cancel it there. Still waiting.", now.id)
    else:
        log.warning("Job %s has the unknown status %r. Still waiting.", now.id, now.status)


def _retry_after(error: Exception) -> float:
    """Return the seconds that the provider asks to wait; 0 if it asks for none."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return max(0.0, float(headers.get("retry-after", 0)))
    except ValueError:
        return 0.0
