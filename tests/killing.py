"""A worker that is killed at a chosen call, for tests of what the next try finds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest


class Killed(BaseException):
    """Stands for kill -9: nothing in the process runs on."""


def killing(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, when: str) -> None:
    """Let the process be killed before or after this call of the owner's function."""
    real, calls = getattr(owner, name), [0]

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] != call:
            return real(*args, **kwargs)
        if when == "before":
            raise Killed
        if asyncio.iscoroutinefunction(real):

            async def answered() -> Any:
                await real(*args, **kwargs)
                raise Killed

            return answered()
        real(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(owner, name, dying)
