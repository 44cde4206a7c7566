"""Fine-tuning jobs of a service with OpenAI's API."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, NonNegativeFloat

from include.common.connection_extra import read_setting
from include.common.shown import LONGEST_NAME, shown_text
from include.jobs.job import KEY, Job, JobApi
from include.jobs.service import OpenAIService
from include.jobs.trigger import PaidJobTrigger

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob

# Seconds between two looks at a job's events. They grow with its age, as each costs as much as a look at the job.
NEWS_EVERY_S, LONGEST_NEWS_PAUSE_S = 60.0, 300.0
LEVELS = {"info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}

log = logging.getLogger(__name__)


class FineTuningApi(JobApi):
    """See `include.jobs.job.JobApi`. A job's `detail` has the fields of `_detail`."""

    underway = frozenset({"validating_files", "queued", "running"})

    async def create(self, request: Mapping[str, Any], metadata: dict[str, str]) -> Job:
        client = await self.client()
        return _job(await client.fine_tuning.jobs.create(**request, metadata=metadata))

    async def get(self, job_id: str) -> Job:
        client = await self.client()
        return _job(await client.fine_tuning.jobs.retrieve(job_id))

    async def find(self, key: str, since: float) -> list[Job]:
        client = (await self.client()).with_options(max_retries=3)
        jobs = client.fine_tuning.jobs.list(metadata={KEY: key}, limit=100)
        return [_job(each) for each in await self._of_key(jobs, key, since)]

    async def cancel(self, job_id: str) -> None:
        client = await self.client()
        await client.fine_tuning.jobs.cancel(job_id)

    async def relay_news(self, job: Job, known: dict[str, Any]) -> None:
        """Log the job's new events (steps, losses, warnings), now and then and at its end."""
        if not job.has_ended and time.monotonic() < known.get("due", 0.0):
            return
        pause = min(max(NEWS_EVERY_S, (self.now() - job.created_at) / 2), LONGEST_NEWS_PAUSE_S)
        known["due"] = time.monotonic() + pause
        last = known.get("event")
        client = await self.client()
        news = []
        # Newest first, a page at a time: after the first look there are only a few new ones.
        async for event in client.fine_tuning.jobs.list_events(job.id, limit=20 if last else 100):
            if event.id == last:
                break
            news.append(event)
        for event in reversed(news):
            log.log(LEVELS.get(event.level, logging.INFO), "%s: %s", job.id, shown_text(event.message))
        if news:
            known["event"] = news[0].id


class OpenAIFineTuneTrigger(PaidJobTrigger):
    """Wait for a fine-tuning job; see `PaidJobTrigger`."""

    api_type: ClassVar[type[JobApi]] = FineTuningApi


def training_cost(service: OpenAIService, tokens: int) -> float | None:
    """Return the cost of training on so many tokens, in US dollars; None if the connection states no price.

    :raises AirflowFailException: the price that the connection states is not valid.
    """
    form = Annotated[NonNegativeFloat, Field(allow_inf_nan=False)]
    price = read_setting(service.conn_id, service.extra, "training_usd_per_million_tokens", form)
    return None if price is None else round(tokens * price / 1e6, 6)


def _job(job: FineTuningJob) -> Job:
    return Job(
        id=job.id, status=job.status, created_at=job.created_at, metadata=job.metadata or None, detail=_detail(job)
    )


def _detail(job: FineTuningJob) -> dict[str, Any]:
    """Return the model, trained tokens, result files and seconds of a job that succeeded; the error of a failed one."""
    error = job.error if job.error and job.error.message else None
    return {
        "model": job.fine_tuned_model,
        "trained_tokens": job.trained_tokens,
        "result_files": job.result_files or [],
        "seconds": job.finished_at - job.created_at if job.finished_at else None,
        "error": error
        and f"{shown_text(error.message)} "
        f"(code {shown_text(error.code, longest=LONGEST_NAME)}, {error.param or 'no file named'})",
    }
