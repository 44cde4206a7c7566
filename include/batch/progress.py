"""How far a batch is."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from include.ai.usage import LLMUsage
from include.batch.chunks import Result


@dataclass
class Progress:
    """Counts over the rows of a task; `known` of them were done before its present try.

    `cost_usd` is None as soon as the price of one call is unknown.
    """

    rows: int
    done: int = 0
    known: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    cost_usd: float | None = 0.0
    usage: LLMUsage | None = None
    started: float = field(default_factory=time.monotonic)

    def add(self, result: Result) -> None:
        """Count a row that is done."""
        self.done += 1
        if result.error_class:
            self.errors[result.error_class] += 1
        self.cost_usd = None if None in (self.cost_usd, result.cost_usd) else self.cost_usd + result.cost_usd  # type: ignore[operator]

    def __str__(self) -> str:
        """As it stands in the log and in the UI."""
        text = f"{self.done:,} of {self.rows:,} rows"
        if failed := self.errors.total():
            text += f", {failed:,} failed"
        if self.cost_usd:
            text += f", ${self.cost_usd:.4f}"
        return text

    def speed(self) -> str:
        """Rows per second of this try, and the time that is left at that."""
        per_second = (self.done - self.known) / (time.monotonic() - self.started)
        left = f", about {(self.rows - self.done) / per_second:.0f} s left" if per_second else ""
        return f"{per_second:.1f} rows/s{left}"
