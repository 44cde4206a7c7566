"""When a call without an answer is repeated: soon, or when the provider asks for it (`Retry-After`)."""

from __future__ import annotations

import random
from contextlib import suppress

from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError

# Statuses of a provider that refuses for load: too many requests, unavailable, overloaded (Anthropic).
REFUSED_FOR_LOAD = (429, 503, 529)
# Seconds before a call is repeated, each shortened at random by up to a quarter so that calls do not stay in step.
PAUSES_S = (0.5, 1.0)
# If the provider says how long to wait: the most calls, and the most seconds of waiting in total.
MOST_CALLS = 9
LONGEST_WAIT_S = 600.0


def next_wait(error: ModelAPIError, calls: int, patience: float) -> float | None:
    """Return the seconds until the next call, after this many calls; None if there is none.

    :param patience: how many seconds the provider may still ask to wait.
    """
    if asked := _asked_wait(error):
        return asked if calls < MOST_CALLS and asked <= patience else None
    jitter = random.uniform(0.75, 1)  # noqa: S311 (no secret)
    return PAUSES_S[calls - 1] * jitter if calls <= len(PAUSES_S) else None


def _asked_wait(error: ModelAPIError) -> float:
    """Return the seconds that the provider asks to wait; 0 if it does not ask."""
    if error.retry_after is None and isinstance(error, ModelHTTPError) and error.headers:
        with suppress(ValueError):  # pydantic-ai reads whole seconds only
            return max(0.0, float(error.headers.get("retry-after", 0)))
    return error.retry_after or 0.0
