"""The one job of a task instance: the existing one, or a new one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from include.jobs.job import KEY, REQUEST, Job, JobApi
from include.jobs.record import JobKey, Record, fingerprint, read_record, write_record
from include.jobs.service import CALL_TIMEOUT_S, OpenAIService, describe, is_passing, task_error
from include.jobs.wait import cancel

# Jobs that the provider dates up to so long before the intent count too, as clocks differ.
CLOCKS_DIFFER_S = 600.0
# For this time after an intent, its create call may still be under way. The next try waits for all of it, as the clocks
# of the two workers may differ, unless the intent is older than any such difference.
SETTLE_S = CALL_TIMEOUT_S + 15
LARGEST_DIFFERENCE_S = 3600.0

log = logging.getLogger(__name__)


async def one_job(
    api: JobApi, key: JobKey, request: Mapping[str, Any], allow: Callable[[Job | None], None] | None = None
) -> Job:
    """Return the task instance's job: the existing one, or a new one.

    The job of an earlier try is used if its request is the same. A job that failed or was cancelled is followed by
    another only after the task was cleared.

    :param allow: called before a new job is created, with the job that it follows, if any; raises if none is allowed.
    :raises AirflowFailException: the provider refuses, or does not know the recorded job.
    :raises AirflowException: the provider cannot be reached now; nothing was lost.
    """
    service = await api.service()
    record = read_record(key.value)
    try:
        job = known = await _known_job(api, service, key.value, record)
        if job and (job.metadata or {}).get(REQUEST, fingerprint(request)) != fingerprint(request):
            log.warning("%s: job %s was for another request; it is not used.", service, job.id)
            if not job.has_ended:
                await cancel(api, job.id)
            job = None
        if job and job.has_no_result and record and (record.killed or key.max_tries > record.max_tries):
            log.info("%s: job %s has %s; starting a new one.", service, job.id, job.status)
            job = None
    except AirflowException:
        raise
    except Exception as error:
        raise task_error(service, "looking for the job of this task", error) from None
    if job is None:
        if allow:
            allow(known)
        return await _create(api, service, key, request)
    log.info("%s: this task already has job %s (%s).", service, job.id, job.status)
    intent_at = record.intent_at if record else job.created_at
    write_record(key.value, Record(intent_at=intent_at, max_tries=key.max_tries, job_id=job.id))
    return job


async def _known_job(api: JobApi, service: OpenAIService, key: str, record: Record | None) -> Job | None:
    from openai import NotFoundError

    if record and record.job_id:
        try:
            return await api.get(record.job_id)
        except NotFoundError:
            raise AirflowFailException(
                f"{service} does not know job {record.job_id}, which an earlier try of this task started. Does the "
                "connection point to another account now? Point it back and clear the task, or start a new run, which "
                "starts a new job."
            ) from None
    since = record.intent_at - CLOCKS_DIFFER_S if record else 0.0
    is_fresh = record is not None and time.time() - record.intent_at < LARGEST_DIFFERENCE_S
    settled = time.monotonic() + (SETTLE_S if is_fresh else 0)
    while True:
        if found := await api.find(key, since):
            return _first(found)
        left = settled - time.monotonic()
        if left <= 0:
            return None
        log.info("An earlier try may just have started a job; looking for it for %.0f s.", left)
        await asyncio.sleep(min(left, 5))


def _first(jobs: list[Job]) -> Job:
    """Return the job to keep: the oldest that goes on or succeeded, else the oldest."""
    return min(jobs, key=lambda job: (job.has_no_result, job.created_at, job.id))


async def _create(api: JobApi, service: OpenAIService, key: JobKey, request: Mapping[str, Any]) -> Job:
    started = time.time()
    record = Record(intent_at=started, max_tries=key.max_tries)
    write_record(key.value, record)
    try:
        job = await api.create(request, key.metadata(request))
    except Exception as error:
        if not is_passing(error):
            raise task_error(service, "starting the job", error) from None
        log.warning("%s: starting the job: %s. Checking whether it has started.", service, describe(error))
        found = await _started_since(api, service, key.value, started)
        if not found:
            raise AirflowException(
                f"{service}: starting the job failed: {describe(error)}. The next try looks for it again."
            ) from None
        job = _first(found)
    else:
        if (job.metadata or {}).get(KEY) != key.value:
            log.warning(
                "%s keeps no metadata of jobs: a job whose worker is killed while starting it cannot be found again.",
                service,
            )
        write_record(key.value, record.model_copy(update={"job_id": job.id}))
        # Another worker that Airflow takes for dead may do the same at this moment: the older job stays.
        others = [other for other in await _started_since(api, service, key.value, started) if not other.has_no_result]
        kept = _first([job, *others])
        if kept.id != job.id:
            log.warning(
                "%s: job %s was started for this task at the same time; cancelling %s.", service, kept.id, job.id
            )
            await cancel(api, job.id)
            job = kept
    write_record(key.value, record.model_copy(update={"job_id": job.id}))
    log.info("%s: job %s belongs to this task.", service, job.id)
    return job


async def _started_since(api: JobApi, service: OpenAIService, key: str, started: float) -> list[Job]:
    """Return the jobs with this key that began after the intent; none if the provider cannot be reached."""
    try:
        found = await api.find(key, started - CLOCKS_DIFFER_S)
    except Exception as error:
        log.warning("%s: listing the jobs failed: %s.", service, describe(error))
        return []
    return [job for job in found if job.created_at >= int(started) - 1]
