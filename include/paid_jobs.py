"""Long jobs at a provider that cost money: each task instance has one, whatever is killed or restarted meanwhile.

The job carries the task instance's key in its metadata, so that the provider itself says whether it exists. A record
on the project's storage says what the provider can't: that a job was about to be created (its answer may be lost),
and whether the task was cleared since (only then may another follow one that failed or was cancelled).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from pydantic import BaseModel, ConfigDict, ValidationError

from include.openai_service import CALL_TIMEOUT_S, OpenAIService, describe, is_passing, task_error
from include.storage import storage_path, write_artifact

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath
    from openai import AsyncOpenAI

KEY = "airflow_task_instance"
REQUEST = "airflow_request"

LONGEST_PAUSE_S = 60.0
# Where a service can't be searched, its newest jobs are looked through, up to so many.
MOST_JOBS = 1_000
# Errors that time does not mend (a refused key, an unknown job) in a row, before waiting for the job is given up.
MOST_REFUSALS = 5
CANCEL_ATTEMPTS = 4

log = logging.getLogger(__name__)


class Job(BaseModel):
    """A job as the provider tells of it. `status` is the provider's word; `detail` is what its kind of job has besides.

    `created_at` is in seconds since the epoch; `metadata` is None where the service keeps none.
    """

    id: str
    status: str
    created_at: float
    metadata: dict[str, str] | None = None
    detail: dict[str, Any] = {}

    @property
    def has_ended(self) -> bool:
        """Whether it will never change again, or cost more."""
        return self.status in ("succeeded", "failed", "cancelled")

    @property
    def is_going(self) -> bool:
        """Whether it may still take up new work. Some providers let what is in flight come back after a cancel."""
        return not self.has_ended and self.status != "cancelling"

    @property
    def has_no_result(self) -> bool:
        """Whether it ended without what it was made for."""
        return self.status in ("failed", "cancelled")


class Outcome(BaseModel):
    """How the wait for a job ended: the payload of the trigger's one event.

    `job` is as it was last seen, None if it never was.
    """

    model_config = ConfigDict(extra="forbid")

    status: Literal["ended", "timed_out", "unreachable"]
    job_id: str
    message: str = ""
    job: Job | None = None


class Record(BaseModel):
    """What this project remembers of a task instance's job.

    `max_tries` is Airflow's number for the task instance, which rises when somebody clears it, and not at a retry;
    `killed` tells that the job was cancelled because the task's own process was.
    """

    intent_at: float
    max_tries: int
    job_id: str | None = None
    killed: bool = False


class JobApi(ABC):
    """The calls to a provider for one kind of job.

    :param connect: gives the service; asked again when it refuses the key, as keys change.
    """

    # What a provider says of a job that goes on as it should.
    underway: frozenset[str]

    def __init__(self, connect: Callable[[], Awaitable[OpenAIService]]) -> None:
        self._connect = connect
        self._service: OpenAIService | None = None
        self._client: AsyncOpenAI | None = None

    async def service(self) -> OpenAIService:
        """The service, from the connection as it was first read."""
        if self._service is None:
            self._service = await self._connect()
        return self._service

    async def client(self) -> AsyncOpenAI:
        """A client for single calls: who calls decides whether to call again."""
        if self._client is None:
            # Its imports and certificates take half a second, which would hold up every other trigger.
            self._client = await asyncio.to_thread((await self.service()).client, retries=0)
        return self._client

    async def close(self) -> None:
        """Drop the connections, and the key: the next call reads the connection again."""
        if self._client:
            await self._client.close()
        self._service = self._client = None

    @abstractmethod
    async def create(self, request: Mapping[str, Any], metadata: dict[str, str]) -> Job:
        """Start a job: one call, never repeated."""

    @abstractmethod
    async def get(self, job_id: str) -> Job:
        """The job as it is now."""

    @abstractmethod
    async def find(self, key: str, since: float) -> list[Job]:
        """The jobs with this key in their metadata, newest first, back to `since` where the service can't search."""

    async def _of_key(self, newest_first: AsyncIterable[Any], key: str, since: float) -> list[Any]:
        """Those of the provider's jobs that have this key, among the newest MOST_JOBS back to `since`."""
        found, seen = [], 0
        async for each in newest_first:
            seen += 1
            if each.created_at < since or seen > MOST_JOBS:
                break
            if (each.metadata or {}).get(KEY) == key:
                found.append(each)
        return found

    @abstractmethod
    async def cancel(self, job_id: str) -> None:
        """Ask the provider to stop the job."""

    async def relay_news(self, job: Job) -> None:  # noqa: B027
        """Log what the provider has said about the job since the last call."""


class JobKey:
    """A task instance, over all its tries, as the provider and the project's storage know it.

    Deployments with different storage have different keys, as they can have runs of the same name.

    :param part: tells the jobs of a task instance that needs several, one after the other.
    """

    def __init__(self, ti: Any, part: str = "") -> None:
        self.names = {
            "airflow_dag_id": ti.dag_id,
            "airflow_run_id": ti.run_id,
            "airflow_task_id": ti.task_id,
        }
        parts = [str(storage_path()), ti.dag_id, ti.run_id, ti.task_id, str(ti.map_index), *([part] if part else [])]
        self.max_tries = ti.max_tries
        self.value = hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def metadata(self, request: Mapping[str, Any]) -> dict[str, str]:
        """What a job for this request carries."""
        names = {name: value[:500] for name, value in self.names.items()}
        return {**names, KEY: self.value, REQUEST: fingerprint(request)}


def fingerprint(request: Mapping[str, Any]) -> str:
    """The same for equal requests only."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:32]


def record_path(key: str) -> ObjectStoragePath:
    """Where the record of a task instance's job is."""
    return storage_path("jobs", f"{key}.json")


def read_record(key: str) -> Record | None:
    """The record, or None if there is none.

    :raises AirflowFailException: it cannot be understood, which is not the same: a job may be under way.
    """
    path = record_path(key)
    try:
        return Record.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise AirflowFailException(
            f"The record of this task's job, {path}, cannot be read. See at the provider whether a job of this run "
            "is under way, delete the file, and clear the task."
        ) from None


def write_record(key: str, record: Record) -> None:
    """Remember this from now on."""
    write_artifact(record_path(key), record.model_dump_json())


def mark_killed(key: str) -> None:
    """Note that the job was cancelled with its task's process: the next try starts a new one."""
    if record := read_record(key):
        write_record(key, record.model_copy(update={"killed": True}))


# Within this time of an intent, its create call may still be on its way.
SETTLE_S = CALL_TIMEOUT_S + 15


async def one_job(api: JobApi, key: JobKey, request: Mapping[str, Any]) -> Job:
    """The task instance's job: the one that there is, or a new one.

    There is one if an earlier try has created it and the request is the same. One that failed or was cancelled is
    only followed by another when somebody clears the task.

    :raises AirflowFailException: the provider refuses, or does not know the recorded job.
    :raises AirflowException: the provider cannot be asked now; nothing was lost.
    """
    service = await api.service()
    record = read_record(key.value)
    try:
        job = await _known_job(api, service, key.value, record)
        if job and (job.metadata or {}).get(REQUEST, fingerprint(request)) != fingerprint(request):
            log.warning("%s: job %s was for another request; it is not used.", service, job.id)
            if not job.has_ended:
                await cancel(api, job.id)
            job = None
        if job and job.has_no_result and record and (record.killed or key.max_tries > record.max_tries):
            log.info("%s: job %s has %s; starting anew.", service, job.id, job.status)
            job = None
    except AirflowException:
        raise
    except Exception as error:
        raise task_error(service, "looking for the job of this task", error) from None
    if job is None:
        return await _create(api, service, key, request)
    log.info("%s: this task has job %s already (%s).", service, job.id, job.status)
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
                f"{service} does not know job {record.job_id}, which an earlier try of this task has started. Does "
                "the connection point to another account now? Point it back and clear the task; or start a new run, "
                "which starts a new job."
            ) from None
    since = record.intent_at - LONGEST_PAUSE_S if record else 0.0
    while True:
        if found := await api.find(key, since):
            return _first(found)
        left = record.intent_at + SETTLE_S - time.time() if record else 0
        if left <= 0:
            return None
        log.info("An earlier try may have started a job just now; looking for it for %.0f s.", left)
        await asyncio.sleep(min(left, 5))


def _first(jobs: list[Job]) -> Job:
    """The one to keep: a job that goes on or succeeded before one that did not, then the oldest."""
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
        log.warning("%s: starting the job: %s. Looking whether it has started.", service, describe(error))
        found = await _started_since(api, service, key.value, started)
        if not found:
            raise AirflowException(
                f"{service}: starting the job failed: {describe(error)}. The next try looks for it once more."
            ) from None
        job = _first(found)
    else:
        if (job.metadata or {}).get(KEY) != key.value:
            log.warning(
                "%s keeps no metadata of jobs: if a worker is killed while it starts a job, that job is not found "
                "again.",
                service,
            )
        write_record(key.value, record.model_copy(update={"job_id": job.id}))
        # Another worker may do the same at this moment, if Airflow took it for dead: the older job stays.
        others = [other for other in await _started_since(api, service, key.value, started) if not other.has_no_result]
        kept = _first([job, *others])
        if kept.id != job.id:
            log.warning("%s: job %s was started for this task at the same time; %s goes.", service, kept.id, job.id)
            await cancel(api, job.id)
            job = kept
    write_record(key.value, record.model_copy(update={"job_id": job.id}))
    log.info("%s: job %s is the one of this task.", service, job.id)
    return job


async def _started_since(api: JobApi, service: OpenAIService, key: str, started: float) -> list[Job]:
    """The jobs of this key that began after the intent, as far as the provider can be asked."""
    try:
        found = await api.find(key, started - LONGEST_PAUSE_S)
    except Exception as error:
        log.warning("%s: listing the jobs failed: %s.", service, describe(error))
        return []
    return [job for job in found if job.created_at >= int(started) - 1]


async def cancel(api: JobApi, job_id: str) -> Job | None:
    """Cancel the job, with some patience, and return it as it is then; None if it may go on for all that is known.

    A provider refuses to cancel a job that has ended: that is no error.
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
    """Look at the job until it has ended or the deadline is over.

    Errors that pass are waited out, up to the deadline: the job costs what it costs, watched or not.

    :param poke_interval: the shortest pause between two looks, in seconds; with the job's age it grows to a minute.
    :param deadline: seconds since the epoch, as it must mean the same in another process.
    :param cancel_on_timeout: cancel a job that goes on at the deadline.
    """
    job: Job | None = None
    refusals = 0
    while True:
        pause = poke_interval
        try:
            seen = await api.get(job_id)
            await api.relay_news(seen)
        except Exception as error:
            problem = describe(error)
            log.warning("Job %s: %s.", job_id, problem)
            pause = max(2 * poke_interval, _retry_after(error))
            refusals = 0 if is_passing(error) else refusals + 1
            if refusals:
                await api.close()  # keys change
            if refusals == MOST_REFUSALS:
                message = f"job {job_id} goes on, but the wait for it is over: {problem}"
                return Outcome(status="unreachable", job_id=job_id, message=message, job=job)
        else:
            refusals = 0
            _log_change(api, job, seen)
            job = seen
            if job.has_ended:
                return Outcome(status="ended", job_id=job_id, job=job)
            pause = max(pause, (time.time() - job.created_at) / 20)
        left = deadline - time.time()
        if left <= 0:
            return await _timed_out(api, job_id, job, cancel_on_timeout)
        # Jobs that were started together are not asked for together.
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
        log.warning("Job %s is paused at the provider: resume or cancel it there. Waiting on.", now.id)
    else:
        log.warning("Job %s has the unknown status %r. Waiting on.", now.id, now.status)


def _retry_after(error: Exception) -> float:
    """What the provider asks to wait, in seconds; 0 if it does not."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return max(0.0, float(headers.get("retry-after", 0)))
    except ValueError:
        return 0.0
