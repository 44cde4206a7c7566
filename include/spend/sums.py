"""Sums of the ledger, as the page and the daily report show them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, timedelta

from include.spend.ledger import Line, Record
from include.spend.reading import Reading


@dataclass
class Sum:
    """What some attempts used. `failed_usd` is what attempts cost that failed in the end."""

    name: str
    attempts: int = 0
    calls: int = 0
    failed: int = 0
    unpriced: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cost_usd: float = 0.0
    failed_usd: float = 0.0

    def add(self, record: Record, lines: Iterable[Line]) -> None:
        """Count an attempt, or some of its lines."""
        self.attempts += 1
        for line in lines:
            self.calls += line.calls
            self.failed += line.failed
            self.unpriced += line.unpriced
            self.tokens += line.input_tokens + line.output_tokens
            self.seconds += line.seconds
            self.cost_usd += line.cost_usd
            self.failed_usd += line.cost_usd if record.state == "failed" else 0.0


@dataclass
class Overview:
    """What was spent from `first` to `last`: in all, by day, and by what the tables are of, the dearest first."""

    first: date
    last: date
    unreadable: int
    total: Sum
    days: list[Sum]
    dags: list[Sum]
    models: list[Sum]
    prompts: list[Sum]
    runs: dict[str, Sum] = field(default_factory=dict)


def overview(reading: Reading, first: date, last: date) -> Overview:
    """Add up the records of some days."""
    records = reading.records
    total = Sum("all")
    for record in records:
        total.add(record, record.lines)
    days = {
        str(first + timedelta(number)): Sum(str(first + timedelta(number))) for number in range((last - first).days + 1)
    }
    for record in records:
        days.setdefault(str(record.started.date()), Sum(str(record.started.date()))).add(record, record.lines)
    return Overview(
        first,
        last,
        reading.unreadable,
        total,
        list(days.values()),
        dearest(_by(records, lambda record, line: record.dag_id)),
        dearest(_by(records, lambda record, line: f"{line.model} ({line.conn_id})")),
        dearest(
            _by(
                records,
                lambda record, line: f"{record.dag_id} / {record.task_id} / {line.prompt}" if line.prompt else "",
            )
        ),
        _by(records, lambda record, line: record.run_id),
    )


def dearest(sums: dict[str, Sum]) -> list[Sum]:
    """Return sums by cost, then tokens, falling."""
    return sorted(sums.values(), key=lambda each: (-each.cost_usd, -each.tokens, each.name))


def _by(records: Iterable[Record], name: Callable[[Record, Line], str]) -> dict[str, Sum]:
    sums: dict[str, Sum] = {}
    for record in records:
        lines: dict[str, list[Line]] = {}
        for line in record.lines:
            if key := name(record, line):
                lines.setdefault(key, []).append(line)
        for key, some in lines.items():
            sums.setdefault(key, Sum(key)).add(record, some)
    return sums
