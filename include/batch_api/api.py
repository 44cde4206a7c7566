"""Batches at a service with OpenAI's Batch API: many requests at half the price, answered within a day."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from include.common.shown import LONGEST_NAME, shown_text
from include.common.stored_files import new_artifact
from include.jobs.job import Job, JobApi
from include.jobs.service import OpenAIService
from include.jobs.trigger import PaidJobTrigger

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath
    from openai.types import Batch

ENDPOINT: Final = "/v1/chat/completions"
ERRORS_SHOWN = 5
COUNTS = ("completed", "failed", "total")

log = logging.getLogger(__name__)


class BatchApi(JobApi):
    """See `include.jobs.job.JobApi`. A job's `detail` has the fields of `_detail`.

    :param input_file_id: the file that `create` sends. The request has only a hash of its content.
    """

    underway = frozenset({"validating", "in_progress", "finalizing", "cancelling"})

    def __init__(self, connect: Callable[[], Awaitable[OpenAIService]], input_file_id: str = "") -> None:
        super().__init__(connect)
        self._input_file_id = input_file_id

    async def create(self, request: Mapping[str, Any], metadata: dict[str, str]) -> Job:
        client = await self.client()
        batch = await client.batches.create(
            input_file_id=self._input_file_id, endpoint=ENDPOINT, completion_window="24h", metadata=metadata
        )
        return _job(batch)

    async def get(self, job_id: str) -> Job:
        client = await self.client()
        return _job(await client.batches.retrieve(job_id))

    async def find(self, key: str, since: float) -> list[Job]:
        client = (await self.client()).with_options(max_retries=3)
        return [_job(each) for each in await self._of_key(client.batches.list(limit=100), key, since)]

    async def cancel(self, job_id: str) -> None:
        client = await self.client()
        await client.batches.cancel(job_id)

    async def relay_news(self, job: Job, known: dict[str, Any]) -> None:
        """Log how many requests are done, if the number has changed since the last call."""
        counts = job.detail["counts"]
        if counts != known.get("counts"):
            log.info("%s: %d requests answered, %d failed, of %d.", job.id, *(counts[name] for name in COUNTS))
            known["counts"] = counts

    async def download(self, file_id: str, path: ObjectStoragePath) -> None:
        """Copy a file of the provider to the project's storage, whole or not at all."""
        client = (await self.client()).with_options(max_retries=3, timeout=600)
        async with client.files.with_streaming_response.content(file_id) as response:
            with new_artifact(path) as file:
                async for part in response.iter_bytes():
                    file.write(part)


class OpenAIBatchTrigger(PaidJobTrigger):
    """Wait for a batch; see `PaidJobTrigger`."""

    api_type: ClassVar[type[JobApi]] = BatchApi


def _job(batch: Batch) -> Job:
    """Convert a batch. An expired one also counts as succeeded: it has the results of the requests done in time."""
    status = "succeeded" if batch.status in ("completed", "expired") else batch.status
    return Job(
        id=batch.id,
        status=status,
        created_at=batch.created_at,
        metadata=batch.metadata or None,
        detail=_detail(batch),
    )


def _detail(batch: Batch) -> dict[str, Any]:
    """Return the ids of the files with answers and errors, the counts of requests, and why a failed batch failed."""
    errors = (batch.errors and batch.errors.data) or []
    reasons = [
        f"{f'line {e.line}: ' if e.line else ''}{shown_text(e.message or '')} "
        f"(code {shown_text(e.code, longest=LONGEST_NAME)})"
        for e in errors[:ERRORS_SHOWN]
    ]
    counts = batch.request_counts
    return {
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "counts": {name: getattr(counts, name, 0) for name in COUNTS},
        "error": "; ".join(reasons) or None,
    }
