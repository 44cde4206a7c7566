"""How fast this process may call a model: a steady pace, as many calls at once as the provider takes, and its pauses.

A `RateLimit` belongs to one HTTP client, whose requests wait for their turn (repeated ones, too)
and whose answers are heeded. A refusal for load (429) makes fewer calls be in flight until others went well; the
refused call itself waits as long as `Retry-After` asks, and keeps its place meanwhile. `x-ratelimit-*` holds back all
calls where the account has no room for the next.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from collections.abc import Mapping

# The provider refuses because of the load: too many requests, unavailable, overloaded (Anthropic).
REFUSED_FOR_LOAD = (429, 503, 529)
LONGEST_PAUSE_S = 600.0
# Of the places, so many are kept after a refusal; after so many answers there is one more.
KEPT = 0.75
ANSWERS_PER_PLACE = 4
# The share of the limits that is used: requests that are late, and so closer together, must not overfill a minute.
USED = 0.98
CHARACTERS_PER_TOKEN = 4

log = logging.getLogger(__name__)


class RateLimit:
    """Paces the requests of one HTTP client.

    Requests are spread evenly, so that no minute has more than its limit, also after a restart.

    :param requests_per_minute: None for no limit of one's own; the provider's answers are heeded all the same.
    :param tokens_per_minute: likewise. A request's tokens are estimated and put right when its answer tells them.
    :param at_once: the most calls in flight.
    """

    def __init__(
        self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None, at_once: int = 1_000
    ) -> None:
        self._request_gap = 60 / (USED * requests_per_minute) if requests_per_minute else 0.0
        self._token_gap = 60 / (USED * tokens_per_minute) if tokens_per_minute else 0.0
        self._at_once = at_once
        # Holds a place for each call, from before its first request until its answer.
        self.places = anyio.CapacityLimiter(at_once)
        self._next_request = self._next_token = self._paused_until = 0.0
        self._last_refusal = 0.0
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
        """Wait until a request of so many tokens may go; return the moment, on `time.monotonic`'s clock."""
        while True:
            start = max(time.monotonic(), self._next_request, self._next_token, self._paused_until)
            self._next_request = start + self._request_gap
            self._next_token = start + tokens * self._token_gap
            if (wait := start - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            if self._paused_until <= start:  # else the provider asked for a pause meanwhile
                return start

    async def _after(self, response: Any) -> None:
        started, tokens = response.request.extensions["rate_limit"]
        if response.status_code in REFUSED_FOR_LOAD:
            self._slow_down(started)
        elif response.is_success:
            self._speed_up()
            usage = _usage(await response.aread())
            if usage:
                total, answered = usage
                self._next_token += (total - tokens) * self._token_gap
                self._mean_answer_tokens += (answered - self._mean_answer_tokens) / 10
        for kind, needed in (("requests", 1.0), ("tokens", tokens)):
            self._pause(_until_free(response.headers, kind, needed))

    def _pause(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, time.monotonic() + min(seconds, LONGEST_PAUSE_S))

    def _slow_down(self, started: float) -> None:
        """Take places away, once for all the calls that were in flight together."""
        if started <= self._last_refusal:
            return
        self._last_refusal, self._answers_since = time.monotonic(), 0
        self.places.total_tokens = max(1, int(KEPT * self.places.total_tokens))
        log.debug("The provider refuses calls for their number: %d at once from now on.", self.places.total_tokens)

    def _speed_up(self) -> None:
        """One more place after some calls that went well."""
        self._answers_since += 1
        if self.places.total_tokens < self._at_once and self._answers_since >= ANSWERS_PER_PLACE:
            self.places.total_tokens, self._answers_since = self.places.total_tokens + 1, 0


def _until_free(headers: Mapping[str, str], kind: str, needed: float) -> float:
    """Seconds until the account has room for as much as is needed, from the provider's `x-ratelimit-*` headers.

    `reset` is when all of `limit` is free again; what is used comes back evenly until then.
    """
    limit, remaining = (headers.get(f"x-ratelimit-{name}-{kind}") for name in ("limit", "remaining"))
    if limit is None or remaining is None:
        return 0.0
    used, missing = _number(limit) - _number(remaining), needed - _number(remaining)
    if missing <= 0 or used <= 0:
        return 0.0
    reset = sum(
        float(amount) * {"h": 3600, "m": 60, "s": 1, "ms": 0.001}[unit]
        for amount, unit in re.findall(r"([\d.]+)(ms|h|m|s)", headers.get(f"x-ratelimit-reset-{kind}", ""))
    )
    return reset * min(missing / used, 1.0)


def _usage(body: bytes) -> tuple[float, float] | None:
    """Tokens in all and of the answer alone, as OpenAI, Anthropic and those who copy them tell; None if not told."""
    try:
        usage = json.loads(body)["usage"]
        answered = usage.get("completion_tokens", usage.get("output_tokens", 0))
        asked = usage.get("prompt_tokens", usage.get("input_tokens", 0))
        return float(asked + answered), float(answered)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
