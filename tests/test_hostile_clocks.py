"""Clocks that are wrong or jump, of this machine, another worker and the provider: nothing paid is lost by them.

So are the log of an account's limits (tests/test_account_limits.py) and rate headers (tests/test_hostile_inputs.py).
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.fine_tuning.api import FineTuningApi
from include.fine_tuning.operator import OpenAIFineTuneOperator
from include.jobs import job as module
from include.jobs import start, wait
from include.jobs.job import Job, Outcome
from include.jobs.record import Record
from tests.virtual_time import VirtualTime

pytestmark = pytest.mark.one_stack

DAY = 86_400.0
JUMPS_S = [-DAY, 3600.0, DAY, 365 * DAY]
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


async def no_service() -> Any:
    raise AssertionError("no service is called")


class Clock:
    """This machine's clocks: one that anyone may set, and one that only goes on."""

    def __init__(self) -> None:
        self.wall, self.monotonic_now = NOON.timestamp(), 50.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.monotonic_now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def answer(date: str | None) -> httpx2.Response:
    return httpx2.Response(200, headers={} if date is None else {"date": date})


@pytest.mark.parametrize("jump", JUMPS_S)
def test_a_machine_whose_clock_jumps_still_knows_the_providers_time(clock, jump):
    api = FineTuningApi(no_service)
    assert api.now() == NOON.timestamp()
    asyncio.run(api._read_clock(answer(format_datetime(NOON + timedelta(minutes=5), usegmt=True))))
    clock.wall += jump
    clock.monotonic_now += 10

    assert api.now() == NOON.timestamp() + 5 * 60 + 10


DATES = [None, "", "yesterday", "Thu, 99 Nov 2026 99:99:99 GMT", "0", "Thu, 26 Nov 99999999 00:00:00 GMT"]


@pytest.mark.parametrize("date", DATES)
def test_a_date_that_is_none_is_ignored(clock, date):
    api = FineTuningApi(no_service)
    asyncio.run(api._read_clock(answer(date)))
    assert api.now() == NOON.timestamp()


@given(st.text(max_size=40))
def test_no_date_of_a_provider_fails_the_call_that_it_came_with(date):
    api = FineTuningApi(no_service)
    asyncio.run(api._read_clock(SimpleNamespace(headers={"date": date})))  # type: ignore[arg-type]
    assert api.now() > 0


@pytest.mark.parametrize("jump", JUMPS_S)
def test_a_jump_of_the_clock_cancels_no_job_that_is_paid(clock, monkeypatch, jump):
    class Api(FineTuningApi):
        looks = 0

        async def get(self, job_id: str) -> Job:
            self.looks += 1
            await self._read_clock(answer(format_datetime(NOON + timedelta(seconds=self.looks), usegmt=True)))
            clock.wall += jump
            ended = self.looks == 5
            return Job(id=job_id, status="succeeded" if ended else "running", created_at=NOON.timestamp())

        async def relay_news(self, job: Job, known: dict[str, Any]) -> None:
            pass

        async def cancel(self, job_id: str) -> None:
            raise AssertionError("the job is cancelled")

    async def no_sleep(seconds: float) -> None:
        assert 0 <= seconds <= wait.LONGEST_PAUSE_S

    monkeypatch.setattr(wait, "asyncio", SimpleNamespace(sleep=no_sleep))
    deadline = NOON.timestamp() + 100
    outcome: Outcome = asyncio.run(
        wait.wait_for_job(Api(no_service), "job", poke_interval=1, deadline=deadline, cancel_on_timeout=True)
    )
    assert (outcome.status, outcome.job and outcome.job.status) == ("ended", "succeeded")


# The record of a job that may just have been started, by a worker with another clock

AHEAD_S = [-100 * DAY, -4000.0, -3000.0, -10.0, 0.0, 30.0, 3600.0, DAY, 365 * DAY]


@pytest.mark.parametrize("ahead", AHEAD_S)
def test_a_job_that_may_just_have_been_started_is_looked_for_as_long_as_a_call_takes_whatever_the_clocks_say(
    monkeypatch, ahead
):
    virtual = VirtualTime(monkeypatch, start)
    virtual.now = began = 1000 * DAY

    class Api(FineTuningApi):
        async def find(self, key: str, since: float) -> list[Job]:
            return []

    record = Record(intent_at=began + ahead, max_tries=1)
    assert asyncio.run(start._known_job(Api(no_service), SimpleNamespace(), "key", record)) is None  # type: ignore[arg-type]
    is_long_past = ahead < -start.LARGEST_DIFFERENCE_S
    assert virtual.now - began == pytest.approx(0 if is_long_past else start.SETTLE_S)


def test_an_execution_time_out_ends_no_wait_of_a_task_that_waits_in_its_worker():
    """It would call the task's `on_kill`, which cancels the job."""
    arguments: dict[str, Any] = {"fine_tuning_file_id": "file", "model": "m", "execution_timeout": timedelta(hours=2)}
    waiting = OpenAIFineTuneOperator(task_id="a", deferrable=False, **arguments)
    assert waiting.execution_timeout is None
    assert OpenAIFineTuneOperator(task_id="b", **arguments).execution_timeout == timedelta(hours=2)
