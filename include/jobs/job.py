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

# In a job's metadata: whose it is, and what for.
KEY = "airflow_task_instance"
REQUEST = "airflow_request"

# Where a service can't be searched, its newest jobs are looked through, up to so many.
MOST_JOBS = 1_000


class Job(BaseModel):
    """A job as the provider reports it. `status` is the provider's word; `detail` is what its kind of job has besides.

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


class JobApi(ABC):
    """The calls to a provider for one kind of job: for one job, or for all that a process waits for.

    :param connect: gives the service; asked again when it refuses the key, as keys change.
    """

    # What a provider says of a job that goes on as it should.
    underway: frozenset[str]

    def __init__(self, connect: Callable[[], Awaitable[OpenAIService]]) -> None:
        self._connect = connect
        self._service: OpenAIService | None = None
        self._client: tuple[OpenAIService, AsyncOpenAI] | None = None
        self._opening = asyncio.Lock()
        self._opened = AsyncExitStack()
        self._ahead: float | None = None

    def now(self) -> float:
        """Return the provider's time, which also dates its jobs: no clock of ours that jumps ends a paid job.

        It is this machine's until the first answer, and where the provider states none.
        """
        return time.time() if self._ahead is None else time.monotonic() + self._ahead

    async def _read_clock(self, response: Response) -> None:
        with suppress(KeyError, ValueError, OverflowError):
            self._ahead = parsedate_to_datetime(response.headers["date"]).timestamp() - time.monotonic()

    async def service(self) -> OpenAIService:
        """Return the service, from the connection as it was first read, or read again."""
        if self._service is None:
            self._service = await self._connect()
        return self._service

    async def client(self) -> AsyncOpenAI:
        """Return a client for single calls: who calls decides whether to call again."""
        async with self._opening:
            service = await self.service()
            if self._client is None or self._client[0] != service:
                # Its imports and certificates take half a second, which would hold up every other trigger.
                client = await asyncio.to_thread(service.client, retries=0, after=[self._read_clock])
                self._opened.push_async_callback(client.close)
                self._client = service, client
            return self._client[1]

    def forget_key(self) -> None:
        """Have the next call read the connection again. Calls under way, also those for other jobs, go on."""
        self._service = None

    async def close(self) -> None:
        """Drop the connections, and the key: the next call reads the connection again."""
        await self._opened.aclose()
        self._service = self._client = None

    @abstractmethod
    async def create(self, request: Mapping[str, Any], metadata: dict[str, str]) -> Job:
        """Start a job: one call, never repeated."""

    @abstractmethod
    async def get(self, job_id: str) -> Job:
        """Return the job as it is now."""

    @abstractmethod
    async def find(self, key: str, since: float) -> list[Job]:
        """Return the jobs with this key, newest first; where the service can't search, back to `since`."""

    async def _of_key(self, newest_first: AsyncIterable[Any], key: str, since: float) -> list[Any]:
        """Return those of the provider's jobs that have this key, among the newest MOST_JOBS back to `since`."""
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
        """Log what the provider has said about the job since the last call.

        :param known: what was logged of this job, and when it is due again; empty at the first call.
        """
