"""`examples/ask.py` against a fake of Airflow's REST API that is busy, restarts, or is an older one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from examples import ask
from local.web_server import in_a_thread

CONF = {"message": "Our invoice is wrong."}
RUNS = "/api/v2/dags/on_demand_inference/dagRuns"


class FakeAirflow:
    """A fake: its run is `running` for a number of looks, then a success. `refusals` are sent before anything else."""

    def __init__(self) -> None:
        self.looks_until_success = 3
        self.waits = True
        self.paused = False
        self.queued = False
        self.refusals: list[Response] = []
        self.requests: list[str] = []
        self.created: list[str] = []
        self.app = Starlette(
            routes=[
                Route("/auth/token", lambda _: JSONResponse({"access_token": "t"})),
                Route(RUNS, self._create, methods=["POST"]),
                Route(f"{RUNS}/{{key}}", self._get),
                Route(f"{RUNS}/{{key}}/wait", self._wait),
                Route(f"{RUNS}/{{key}}/{ask.ANSWER}", lambda _: JSONResponse({"value": "the answer"})),
                Route("/api/v2/dags/on_demand_inference", lambda _: JSONResponse({"is_paused": self.paused})),
            ]
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests.append(f"{scope['method']} {scope['path']}")
        if self.refusals and scope["method"] == "POST":
            await self.refusals.pop(0)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _create(self, request: Request) -> Response:
        key = (await request.json())["dag_run_id"]
        if key in self.created:
            return JSONResponse({"detail": "exists"}, 409)
        self.created.append(key)
        return JSONResponse({})

    def _state(self) -> str:
        if self.paused or self.queued:
            return "queued"
        self.looks_until_success -= 1
        return "success" if self.looks_until_success < 0 else "running"

    async def _get(self, request: Request) -> Response:
        return JSONResponse({"state": self._state(), "conf": CONF})

    async def _wait(self, request: Request) -> Response:
        if not self.waits:
            return JSONResponse({"detail": "Not Found"}, 404)

        async def lines() -> Any:
            while True:
                yield json.dumps({"state": (state := self._state())}) + "\n"
                await asyncio.sleep(0)  # or it would never learn that the client has left
                if state == "success":
                    return

        return StreamingResponse(lines())


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAirflow]:
    """The fake at `fake.url`; `fake.slept` has the client's pauses, which take no time but move its clock."""
    fake: Any = FakeAirflow()
    fake.slept, clock = [], [0.0]
    fake.now = lambda: clock[0]

    def sleep(seconds: float) -> None:
        fake.slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(ask, "sleep", sleep)
    monkeypatch.setattr(ask, "monotonic", lambda: fake.now())
    with in_a_thread(lambda: fake) as url:
        fake.url = url.removesuffix("/v1")
        yield fake


def test_an_answer_takes_four_requests_however_long_it_takes(fake):
    fake.looks_until_success = 500

    assert ask.Airflow(fake.url).ask(CONF, "key", 60) == "the answer"
    assert len(fake.requests) == 4


def test_without_the_wait_endpoint_an_answer_of_two_minutes_takes_at_most_ten_requests(fake):
    fake.waits, fake.looks_until_success = False, 10**6

    with pytest.raises(ask.AskError, match="No answer within 120 s"):
        ask.Airflow(fake.url).ask(CONF, "key", 120)
    assert len(fake.requests) <= 10
    assert len(set(fake.slept)) == len(fake.slept)


def test_a_busy_airflow_is_asked_again_after_the_time_it_names(fake):
    fake.refusals = [JSONResponse({"detail": "busy"}, status, {"Retry-After": "7"}) for status in (503, 429)]

    assert ask.Airflow(fake.url).ask(CONF, "key", 60) == "the answer"
    assert all(pause > 7 for pause in fake.slept[:2])
    assert fake.created == ["key"]


def test_a_request_whose_answer_was_lost_is_not_made_twice(fake):
    fake.created = ["key"]  # by the first try, whose connection broke

    assert ask.Airflow(fake.url).ask(CONF, "key", 60) == "the answer"
    assert fake.created == ["key"]


def test_it_gives_up_when_time_is_up_and_says_why(fake):
    fake.refusals = [JSONResponse({"detail": "too many wait"}, 503) for _ in range(50)]

    with pytest.raises(ask.AskError, match="503 too many wait"):
        ask.Airflow(fake.url).ask(CONF, "key", 30)
    assert sum(fake.slept) <= 30


@pytest.mark.parametrize("waits", [True, False], ids=["with the wait endpoint", "without it"])
def test_a_paused_dag_is_named_at_once_with_what_to_do(fake, waits):
    fake.waits, fake.paused = waits, True

    with pytest.raises(ask.AskError, match=r"'on_demand_inference' is paused.*Unpause it.*key 'my-key'"):
        ask.Airflow(fake.url).ask(CONF, "my-key", 3600)
    assert sum(fake.slept) < 60
    assert len(fake.requests) <= 6


@pytest.mark.parametrize("waits", [True, False], ids=["with the wait endpoint", "without it"])
def test_a_run_that_waits_for_its_turn_is_waited_for_in_at_most_ten_requests(fake, waits):
    fake.waits, fake.queued = waits, True
    seconds = iter(range(10**6))
    if waits:
        fake.now = lambda: next(seconds)

    with pytest.raises(ask.AskError, match="is queued"):
        ask.Airflow(fake.url).ask(CONF, "key", 120)
    assert len(fake.requests) <= 10
