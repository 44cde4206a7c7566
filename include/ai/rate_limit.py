"""How fast a process may call a model: the account's pace, the provider's capacity for calls at once, and its pauses.

A `RateLimit` belongs to one HTTP client. Its requests, including repeats, wait for their turn, and it adapts to the
answers. If many calls are refused for load (429), fewer are in flight until others succeed; the refused call itself
waits as long as `Retry-After` asks, and keeps its place. `x-ratelimit-*` holds back all calls while the account has no
room for the next.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from include.ai.repeats import REFUSED_FOR_LOAD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from include.ai.account import AccountLog

LONGEST_PAUSE_S = 600.0
# Fewer calls are in flight once this share of about the last LAST_CALLS calls was refused; less is not an overload.
REFUSED_SHARE, LAST_CALLS = 0.2, 50
# The share of the places that is kept then, and the answers after which there is one more place.
KEPT = 0.75
ANSWERS_PER_PLACE = 4
# The share of the limits that is used, so that requests that are late by up to LATEST_S never overfill a minute.
USED = 0.98
# A request that is later than this takes a new turn.
LATEST_S = 1.0
# Turns are taken for the waiting calls, for at most this many seconds ahead, and again when half of them have passed.
AHEAD_S = 2.0
# A turn further ahead than any task waits comes from a wrong clock, and is ignored.
FURTHEST_S = 1200.0
# How long the storage may take, and how long it is not used after an error.
STORAGE_S, ALONE_S = 20.0, 60.0
CHARACTERS_PER_TOKEN = 4

log = logging.getLogger(__name__)


class Free(NamedTuple):
    """When an account is free for the next request and for more tokens, in seconds of some clock."""

    request: float = 0.0
    tokens: float = 0.0


@dataclass(eq=False)
class Wish:
    """A request of this many tokens that waits for its turn, which is at `start`."""

    tokens: float
    start: float | None = None


class RateLimit:
    """Paces the requests of one HTTP client.

    Requests are spread evenly, so that no minute has more than its limit, even after a restart.

    :param requests_per_minute: None for no own limit; the provider's answers are respected anyway.
    :param tokens_per_minute: likewise. A request's tokens are estimated, and corrected when its answer reports them.
    :param at_once: the most calls in flight.
    :param account: shares the limits with all other processes; without it they are this client's own.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        at_once: int = 1_000,
        account: AccountLog | None = None,
    ) -> None:
        self._request_gap = 60 / (USED * requests_per_minute) if requests_per_minute else 0.0
        self._token_gap = 60 / (USED * tokens_per_minute) if tokens_per_minute else 0.0
        self._at_once = at_once
        # A place for each call, from before its first request until its answer.
        self.places = anyio.CapacityLimiter(at_once)
        self._account = account
        self._alone_until = self._granted_until = self._paused_until = 0.0
        self._free = Free()
        self._wishes: list[Wish] = []
        self._reserving = anyio.Lock()
        self._late_tokens = 0.0  # reported by answers, but not yet in an entry of the account
        self._last_refusal = self._refused_share = 0.0
        self._answers_since = 0
        self._mean_answer_tokens = 0.0

    @property
    def hooks(self) -> dict[str, list[Any]]:
        """The event hooks that put an HTTPX client under this limit."""
        return {"request": [self._before], "response": [self._after]}

    async def _before(self, request: Any) -> None:
        size = int(request.headers.get("content-length", 0))
        tokens = size / CHARACTERS_PER_TOKEN + self._mean_answer_tokens
        request.extensions["rate_limit"] = (await self._turn(tokens), tokens)

    async def _turn(self, tokens: float) -> float:
        """Wait until a request of this many tokens may go; return the moment, on `time.monotonic`'s clock."""
        paced = self._request_gap or self._token_gap
        while True:
            await _sleep_until(self._paused_until)
            start = await self._start(tokens) if paced else time.monotonic()
            await _sleep_until(start)
            now = time.monotonic()
            # Otherwise the provider has asked for a pause, or this process got no time.
            if self._paused_until <= now <= start + LATEST_S:
                return now

    async def _start(self, tokens: float) -> float:
        """Take a turn, together with turns for other waiting requests."""
        wish = Wish(tokens)
        self._wishes.append(wish)
        try:
            while wish.start is None:
                async with self._reserving:
                    await self._grant(wish)
        finally:
            self._wishes = [each for each in self._wishes if each.start is None and each is not wish]
        return wish.start

    async def _grant(self, wish: Wish) -> None:
        """Take turns for the requests that have waited longest, unless this one already has its turn."""
        if wish.start is not None:
            return
        await _sleep_until(self._granted_until - AHEAD_S / 2)
        gap = self._request_gap + self._token_gap * self._wishes[0].tokens
        wishes = self._wishes[: max(1, int(AHEAD_S / gap))]
        starts = await self._use([each.tokens for each in wishes])
        for each, start in zip(wishes, starts, strict=True):
            each.start = start
        self._granted_until = starts[-1]

    async def _use(self, tokens: Sequence[float]) -> list[float]:
        """Use the account for requests of these sizes; return the moment of each, on `time.monotonic`'s clock."""
        late, self._late_tokens = self._late_tokens, 0.0

        def use(free: Free, now: float) -> tuple[list[float], Free]:
            request, token = (each if each <= now + FURTHEST_S else now for each in free)
            token = max(token, now) + late * self._token_gap
            starts = []
            for needed in tokens:
                starts.append(start := max(now, request, token))
                request, token = start + self._request_gap, start + needed * self._token_gap
            return starts, Free(request, token)

        if self._account and time.monotonic() >= self._alone_until:
            try:
                with anyio.fail_after(STORAGE_S):
                    starts = await anyio.to_thread.run_sync(self._account.append, use, abandon_on_cancel=True)
                return [start - time.time() + time.monotonic() for start in starts]
            except Exception as error:
                first, self._alone_until = not self._alone_until, time.monotonic() + ALONE_S
                if first:
                    log.warning(
                        "The account's limits per minute are not shared with other tasks, because the storage fails "
                        "(%s): see GENAI_STORAGE. This task keeps them on its own.",
                        type(error).__name__,
                    )
        starts, self._free = use(self._free, time.monotonic())
        return starts

    async def _after(self, response: Any) -> None:
        started, tokens = response.request.extensions["rate_limit"]
        if response.status_code in REFUSED_FOR_LOAD:
            self._slow_down(started)
        elif response.is_success:
            self._speed_up()
            await self._count_tokens(await response.aread(), tokens)
        for kind, needed in (("requests", 1.0), ("tokens", tokens)):
            self._pause(_until_free(response.headers, kind, needed))

    async def _count_tokens(self, body: bytes, tokens: float) -> None:
        """Correct the estimated tokens: with the next turns, or at once if no request waits."""
        if self._token_gap and (usage := _usage(body)):
            total, answered = usage
            self._late_tokens += total - tokens
            self._mean_answer_tokens += (answered - self._mean_answer_tokens) / 10
            if not self._wishes:
                await self._use([])

    def _pause(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, time.monotonic() + min(seconds, LONGEST_PAUSE_S))

    def _slow_down(self, started: float) -> None:
        """Remove places if many calls are refused, once for all the calls that were in flight together."""
        self._refused_share += (1 - self._refused_share) / LAST_CALLS
        if self._refused_share < REFUSED_SHARE or started <= self._last_refusal:
            return
        self._last_refusal, self._answers_since = time.monotonic(), 0
        self.places.total_tokens = max(1, int(KEPT * self.places.total_tokens))
        log.debug("The provider refuses many calls: %d at once from now on.", self.places.total_tokens)

    def _speed_up(self) -> None:
        """Add a place after ANSWERS_PER_PLACE successful calls."""
        self._refused_share -= self._refused_share / LAST_CALLS
        self._answers_since += 1
        if self.places.total_tokens < self._at_once and self._answers_since >= ANSWERS_PER_PLACE:
            self.places.total_tokens, self._answers_since = self.places.total_tokens + 1, 0


async def _sleep_until(moment: float) -> None:
    if (seconds := moment - time.monotonic()) > 0:
        await asyncio.sleep(seconds)


def _until_free(headers: Mapping[str, str], kind: str, needed: float) -> float:
    """Seconds until the account has room for as much as is needed, from the provider's `x-ratelimit-*` headers.

    `reset` is when all of `limit` is free again; what is used comes back evenly until then. An invalid header is
    ignored, because the answer that it came with is paid.
    """
    limit, remaining = (_number(headers.get(f"x-ratelimit-{name}-{kind}", "")) for name in ("limit", "remaining"))
    if limit is None or remaining is None or remaining >= min(needed, limit):
        return 0.0
    used, missing = limit - remaining, needed - remaining
    reset = sum(
        (_number(amount) or 0.0) * {"h": 3600, "m": 60, "s": 1, "ms": 0.001}[unit]
        for amount, unit in re.findall(r"([\d.]{1,20})(ms|h|m|s)", headers.get(f"x-ratelimit-reset-{kind}", "")[:100])
    )
    return reset * min(missing / used, 1.0)


def _usage(body: bytes) -> tuple[float, float] | None:
    """Return the tokens in total and of the answer alone, as OpenAI, Anthropic and compatible servers report them."""
    try:
        usage = json.loads(body)["usage"]
        answered = usage.get("completion_tokens", usage.get("output_tokens", 0))
        asked = usage.get("prompt_tokens", usage.get("input_tokens", 0))
        total, answer = float(asked + answered), float(answered)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return (total, answer) if 0 <= answer <= total < math.inf else None


def _number(text: str) -> float | None:
    """Return a text as a finite number; None if it is not one."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
