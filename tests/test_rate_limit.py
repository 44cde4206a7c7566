"""`include.ai.rate_limit`: what an HTTP client under a limit does when the provider answers this or that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise

import httpx2
import pytest

from include.ai import rate_limit
from include.ai.rate_limit import RateLimit
from tests.virtual_time import VirtualTime

pytestmark = pytest.mark.one_stack

Send = Callable[[RateLimit, Callable[[int], httpx2.Response], int], list[float]]
OK = httpx2.Response(200, json={"usage": {"prompt_tokens": 90, "completion_tokens": 10}})


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch, rate_limit)


@pytest.fixture
def send(clock: VirtualTime) -> Send:
    """Send requests one after the other; return when each came to the server, in seconds since the first."""

    def run(limit: RateLimit, answer: Callable[[int], httpx2.Response], count: int) -> list[float]:
        times: list[float] = []

        def handle(request: httpx2.Request) -> httpx2.Response:
            times.append(clock.now)
            return answer(len(times))

        async def all_of_them() -> None:
            async with httpx2.AsyncClient(transport=httpx2.MockTransport(handle), event_hooks=limit.hooks) as client:
                for _ in range(count):
                    await client.post("http://provider", json={"text": "x" * 100})

        clock.now += 1
        asyncio.run(all_of_them())
        return [each - times[0] for each in times]

    return run


def answered(**headers: str) -> httpx2.Response:
    return httpx2.Response(200, json={}, headers={name.replace("_", "-"): value for name, value in headers.items()})


def test_requests_are_spread_evenly_over_the_minute(send):
    times = send(RateLimit(requests_per_minute=600), lambda _: answered(), 6)

    assert times[-1] == pytest.approx(5 * 60 / (0.98 * 600))
    assert [b - a for a, b in pairwise(times)] == pytest.approx([60 / (0.98 * 600)] * 5)


def test_tokens_are_put_right_when_an_answer_tells_them(send):
    # 100 tokens a call, at 60,000 a minute: ten calls a second, after the first, whose tokens were estimated.
    times = send(RateLimit(tokens_per_minute=60_000), lambda _: httpx2.Response(200, json=OK.json()), 8)

    assert times[-1] - times[1] == pytest.approx(6 * 0.1 / 0.98, rel=0.05)


def test_calls_that_are_refused_now_and_then_are_no_overload(send):
    limit = RateLimit(at_once=40)
    send(limit, lambda n: httpx2.Response(429) if n % 10 == 0 else answered(), 1000)
    assert limit.places.total_tokens == 40


def test_after_many_refusals_fewer_calls_are_in_flight_until_others_went_well(send):
    limit = RateLimit(at_once=40)
    send(limit, lambda _: httpx2.Response(429), 12)
    assert limit.places.total_tokens == 30
    send(limit, lambda _: httpx2.Response(503), 1)
    assert limit.places.total_tokens == 22
    send(limit, lambda _: answered(), 8)
    assert limit.places.total_tokens == 24
    send(limit, lambda _: answered(), 200)
    assert limit.places.total_tokens == 40


def test_one_place_is_always_left(send):
    limit = RateLimit(at_once=2)
    send(limit, lambda _: httpx2.Response(429), 30)

    assert limit.places.total_tokens == 1


@pytest.mark.parametrize("kind", ["requests", "tokens"])
def test_an_account_without_room_is_waited_for(send, kind):
    # All of it is back in 20 s, a fiftieth of it in 0.4 s.
    full = {f"x_ratelimit_limit_{kind}": "5000", f"x_ratelimit_reset_{kind}": "20s"}
    needed = 1 if kind == "requests" else 25
    left = {f"x_ratelimit_remaining_{kind}": str(needed - 100) if kind == "tokens" else "0"}
    times = send(RateLimit(), lambda n: answered(**full, **left) if n == 1 else answered(), 3)

    assert 0.002 < times[1] < 2
    assert times[2] == times[1]


@pytest.mark.parametrize("reset", ["400ms", "0.4s", "0m0.4s"])
def test_the_providers_durations_are_understood(send, reset):
    headers = {"x_ratelimit_limit_requests": "1", "x_ratelimit_remaining_requests": "0"}
    times = send(RateLimit(), lambda n: answered(**headers, x_ratelimit_reset_requests=reset), 2)

    assert times[1] == pytest.approx(0.4)


@pytest.mark.parametrize(
    "headers",
    [
        {"x_ratelimit_limit_requests": "many", "x_ratelimit_remaining_requests": "0"},
        {"x_ratelimit_remaining_requests": "0"},
        {"x_ratelimit_limit_tokens": "10", "x_ratelimit_remaining_tokens": "10", "x_ratelimit_reset_tokens": "1h"},
    ],
)
def test_headers_that_make_no_sense_hold_nothing_back(send, headers):
    assert send(RateLimit(), lambda _: answered(**headers), 3)[-1] == 0
