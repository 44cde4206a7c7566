"""A clock that only sleeping moves, for code that waits: no test with it is slower, or fails, on a busy machine."""

from __future__ import annotations

import asyncio
from types import ModuleType, SimpleNamespace

import pytest


class VirtualTime:
    """The clock of modules that call `time.monotonic()`, `time.time()`, `time.sleep()` and `asyncio.sleep()`.

    A sleep ends as soon as no other ends before it, and moves the clock to when it would have ended.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        self.now = 1000.0
        self._ends: list[float] = []
        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now, sleep=self._sleep)
        for module in modules:
            monkeypatch.setattr(module, "time", clock)
            monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=self._async_sleep), raising=False)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    async def _async_sleep(self, seconds: float) -> None:
        until = self.now + seconds
        self._ends.append(until)
        try:
            await asyncio.sleep(0)
            while min(self._ends) < until:  # noqa: ASYNC110 (its end is another's)
                await asyncio.sleep(0)
            self.now = max(self.now, until)
        finally:
            self._ends.remove(until)
