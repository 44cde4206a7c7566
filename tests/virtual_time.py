"""A clock that only sleeping moves, for code that waits: no test with it is slower, or fails, on a busy machine."""

from __future__ import annotations

import asyncio
from types import ModuleType, SimpleNamespace

import pytest


class VirtualTime:
    """The clock of modules that call `time.monotonic()`, `time.sleep()` and `asyncio.sleep()`, for one test.

    A sleep ends at once, and moves the clock to when it would have ended.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        self.now = 1000.0
        for module in modules:
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self._sleep))
            monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=self._async_sleep), raising=False)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    async def _async_sleep(self, seconds: float) -> None:
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)
