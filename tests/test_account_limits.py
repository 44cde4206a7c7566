"""`include.ai.account`: the limits per minute of an account hold over all processes that use it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from pydantic_ai import Agent

from include.ai import account, rate_limit
from include.ai.account import KEPT_ENTRIES, MOST_ENTRIES, AccountLog
from include.ai.model import connection_model
from include.ai.rate_limit import Free, RateLimit
from tests.conftest import KEY, PROJECT
from tests.storages import on_storage
from tests.virtual_time import VirtualTime

pytestmark = pytest.mark.one_stack

START = 1_000_000.0
RunWorkers = Callable[..., list[float]]


def most_within(times: list[float], seconds: float) -> int:
    return max(sum(start <= each < start + seconds for each in times) for start in times)


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    """The parent of the processes, see `tests.account_workers`."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.account_workers"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen(command, cwd=PROJECT, **pipes) as parent:
        yield parent
        parent.stdin.close()


@pytest.fixture
def run_workers(processes: Any, model: Any) -> RunWorkers:
    """Run processes with one connection; return when each of their requests was let go, in order."""

    def run(*workers: str, **extra: Any) -> list[float]:
        environment = {"AIRFLOW_CONN_PYDANTICAI_DEFAULT": model.connection(**extra)}
        environment["GENAI_STORAGE"] = os.environ["GENAI_STORAGE"]
        processes.stdin.write(json.dumps([environment, workers]) + "\n")
        while not (line := processes.stdout.readline()).startswith("ended"):  # else it is of Airflow's log
            assert line, "it has ended"
        for worker, code in json.loads(line.removeprefix("ended")):
            assert code == (-signal.SIGKILL if "killed" in worker else 0), worker
        return sorted(float(each["sent"]) for each in model.seen())

    return run


# Over processes


@pytest.mark.parametrize(("per_minute", "calls"), [(10, 4), (600, 15)])
def test_four_processes_together_keep_the_requests_per_minute_and_use_them(run_workers, per_minute, calls):
    kinds = ("single", "single", "batch", "batch")
    times = run_workers(*(f"{START}:{kind}:{calls}" for kind in kinds), requests_per_minute=per_minute)

    assert len(times) == 4 * calls
    assert most_within(times, 60) <= per_minute
    assert most_within(times, 3) <= per_minute / 20 + 1
    assert times[-1] - times[0] == pytest.approx((4 * calls - 1) * 60 / (0.98 * per_minute), abs=3), "none is left idle"


def test_embeddings_count_too(run_workers):
    times = run_workers(*(f"{START}:embedding:3" for _ in range(4)), requests_per_minute=30, model="openai:scripted")

    assert len(times) == 12
    assert all(b - a == pytest.approx(60 / (0.98 * 30)) for a, b in pairwise(times))


def test_four_processes_together_keep_the_tokens_per_minute(run_workers):
    times = run_workers(*(f"{START}:{kind}:10" for kind in ("single",) * 3 + ("batch",)), tokens_per_minute=2200)

    assert len(times) == 40
    # Each answer says 110 tokens. Those that are on their way are only estimated.
    assert most_within(times, 60) * 110 <= 2200 + 14 * 110
    assert most_within(times[20:], 60) * 110 <= 2200 * 1.1


def test_a_killed_process_loses_no_more_than_its_turns(run_workers):
    times = run_workers(f"{START}:killed:60", *[f"{START}:single:5"] * 3, requests_per_minute=600)

    assert len(times) == 15
    assert times[-1] - START <= (15 * 0.1 + rate_limit.AHEAD_S) / 0.98 + 0.2


def test_clocks_that_differ_by_seconds_add_no_more_than_these_seconds(run_workers):
    workers = [f"{START + ahead}:single:15" for ahead in (0, 1, 2, 3)]
    times = run_workers(*workers, requests_per_minute=60)

    assert len(times) == 60
    assert most_within(times, 60) <= 60 + 3


# The log


@on_storage("disk", "s3", "memory")
def test_no_moment_is_given_twice_however_many_take_at_once(storage):
    def take(_: int) -> list[float]:
        log = AccountLog("account")
        return [log.append(lambda free, _: (free.request, Free(free.request + 1))) for _ in range(4)]

    with ThreadPoolExecutor(4) as threads:
        moments = sorted(moment for some in threads.map(take, range(4)) for moment in some)
    assert moments == list(range(16))


def test_the_log_goes_on_where_old_entries_are_removed_and_stays_short(storage):
    one, two = AccountLog("account"), AccountLog("account")
    moments = [log.append(lambda free, _: (free.request, Free(free.request + 1))) for log in (one, two) * 200]

    assert moments == list(range(400))
    left = [path.name for path in (storage / "account_limits" / "account").iterdir()]
    assert KEPT_ENTRIES <= len(left) <= MOST_ENTRIES + 1
    assert all(name.isdigit() for name in left)


def test_an_entry_that_a_dead_machine_left_empty_stops_nobody(storage):
    log = AccountLog("account")
    log.append(lambda free, now: (None, Free(now + 1)))
    (entry,) = (storage / "account_limits" / "account").iterdir()
    entry.write_bytes(b"")
    assert log.append(lambda free, _: (free, free)) == Free()


def test_nothing_of_the_connection_can_be_read_from_the_log(model, storage, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", model.connection(requests_per_minute=6000))
    Agent(connection_model("pydanticai_default"), output_type=bool).run_sync("review 1")

    files = [path for path in storage.rglob("*") if path.is_file()]
    assert len(files) == 1
    for path in files:
        assert KEY not in f"{path}{path.read_text()}"
        assert "scripted" not in str(path)


# What may go wrong


def test_a_storage_that_fails_is_logged_once_and_the_process_keeps_the_limit_alone(storage, monkeypatch, caplog):
    clock = VirtualTime(monkeypatch, rate_limit)

    def fail(*_: Any) -> None:
        raise PermissionError("no")

    monkeypatch.setattr("include.ai.account.create_file", fail)
    limit = RateLimit(requests_per_minute=600, account=AccountLog("account"))
    started = clock.now

    async def turns() -> None:
        for _ in range(1000):
            await limit._turn(0)

    asyncio.run(turns())
    assert clock.now - started == pytest.approx(999 * 0.1 / 0.98)
    assert [r.message for r in caplog.records if "not shared" in r.message] == [
        "The account's limits per minute are not shared with other tasks, because the storage fails (PermissionError): "
        "see GENAI_STORAGE. This task keeps them on its own."
    ]


def test_a_worker_whose_clock_is_a_day_ahead_stops_no_other(storage, monkeypatch):
    clock = VirtualTime(monkeypatch, rate_limit)
    monkeypatch.setattr(account, "time", rate_limit.time)
    AccountLog("account").append(lambda _, now: (None, Free(now + 86_400)))

    asyncio.run(RateLimit(requests_per_minute=600, account=AccountLog("account"))._turn(0))
    assert clock.now == 1000


def test_a_connection_without_limits_costs_nothing(model, storage):
    Agent(connection_model("pydanticai_default"), output_type=bool).run_sync("review 1")
    assert [path for path in storage.rglob("*") if path.is_file()] == []


def test_a_limit_that_makes_no_sense_is_named(model, storage, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", model.connection(requests_per_minute=-1))
    with pytest.raises(AirflowFailException, match=r"extra: requests_per_minute: .*greater than 0"):
        Agent(connection_model("pydanticai_default")).run_sync("hello")
