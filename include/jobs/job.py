"""A job as a provider reports it, and the calls to the provider for one kind of job."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from include.jobs.service import OpenAIService

if TYPE_CHECKING:
    from httpx2 import Response
    from openai import AsyncOpenAI

# In a job's metadata: the key of its task instance, and a digest of the request.
KEY = "airflow_task_instance"
REQUEST = "airflow_request"

# How many of the newest jobs are looked through where a service cannot be searched.
MOST_JOBS = 1_000


class Job(BaseModel):
    """A job as the provider reports it. `status` is the provider's word; `detail` holds what only its kind of job has.

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
        """Whether it may still begin new work. Some providers finish the work in flight after a cancel."""
        return not self.has_ended and self.status != "cancelling"

    @property
    def has_no_result(self) -> bool:
        """Whether it ended without a result."""
        return self.status in ("failed", "cancelled")


class Outcome(BaseModel):
    """How the wait for a job ended: the payload of the trigger's one event.

    `job` is its last known state, None if it was never seen.
    """

    model_config = ConfigDict(extra="forbid")

    status: Literal["ended", "timed_out", "unreachable"]
    job_id: str
    message: str = ""
    job: Job | None = None


class JobApi(ABC):
    """The calls to a provider for one kind of job: for one job, or for all jobs that a process waits for.

    :param connect: returns the service. It is called again after the service refuses the key, as keys change.
    """

    # The provider's words for a job that is under way.
    underway: frozenset[str]

    def __init__(self, connect: Callable[[], Awaitable[OpenAIService]]) -> None:
        self._connect = connect
        self._service: OpenAIService | None = None
        self._client: tuple[OpenAIService, AsyncOpenAI] | None = None
        self._opening = asyncio.Lock()
        self._opened = AsyncExitStack()
        self._ahead: float | None = None

    def now(self) -> float:
        """Return the time by the provider's clock, which also dates its jobs: a jump of our clock ends no paid job.

        It is this machine's time until the first answer, and if the provider states no time.
        """
        return time.time() if self._ahead is None else time.monotonic() + self._ahead

    async def _read_clock(self, response: Response) -> None:
        with suppress(KeyError, ValueError, OverflowError):
            self._ahead = parsedate_to_datetime(response.headers["date"]).timestamp() - time.monotonic()

    async def service(self) -> OpenAIService:
        """Return the service, from the connection as last read."""
        if self._service is None:
            self._service = await self._connect()
        return self._service

    async def client(self) -> AsyncOpenAI:
        """Return a client that makes each call once: the caller decides about another."""
        async with self._opening:
            service = await self.service()
            if self._client is None or self._client[0] != service:
                # Imports and certificates take half a second, which would block every other trigger.
                client = await asyncio.to_thread(service.client, retries=0, after=[self._read_clock])
                self._opened.push_async_callback(client.close)
                self._client = service, client
            return self._client[1]

    def forget_key(self) -> None:
        """Have the next call read the connection again. Calls under way go on, also those for other jobs."""
        self._service = None

    async def close(self) -> None:
        """Close the connections and forget the key: the next call reads the Airflow connection again."""
        await self._opened.aclose()
        self._service = self._client = None

    @abstractmethod
    async def create(self, request: Mapping[str, Any], metadata: dict[str, str]) -> Job:
        """Start a job by one call, which is never repeated."""

    @abstractmethod
    async def get(self, job_id: str) -> Job:
        """Return the job as it is now."""

    @abstractmethod
    async def find(self, key: str, since: float) -> list[Job]:
        """Return the jobs with this key, newest first; only those back to `since` if the service cannot search."""

    async def _of_key(self, newest_first: AsyncIterable[Any], key: str, since: float) -> list[Any]:
        """Return the jobs with this key among the newest MOST_JOBS back to `since`."""
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

    async def relay_news(self, job: Job, known: dict[str, Any]) -> None:  # noqa: B027
        """Log what the provider reported about the job since the last call.

        :param known: what was logged about this job, and when the next look is due; empty at the first call.
        """
