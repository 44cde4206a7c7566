"""Sums of the ledger, as the page and the daily report show them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING

from include.spend.reading import Reading

if TYPE_CHECKING:
    import pyarrow as pa

AMOUNTS = ("calls", "failed", "unpriced", "tokens", "seconds", "cost_usd", "failed_usd", "reused", "saved_usd")


@dataclass(frozen=True)
class Sum:
    """What some attempts used. `key` says which; `failed_usd` is the cost of attempts that failed in the end.

    `reused` calls were answered from the storage, and would have cost `saved_usd`.
    """

    key: tuple[str, ...]
    attempts: int = 0
    calls: int = 0
    failed: int = 0
    unpriced: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cost_usd: float = 0.0
    failed_usd: float = 0.0
    reused: int = 0
    saved_usd: float = 0.0

    @property
    def name(self) -> str:
        """The key as one text."""
        return " / ".join(self.key)


@dataclass(frozen=True)
class Overview:
    """What was spent from `first` to `last`: in total, by day, and for each table with the most expensive first.

    The keys are `(day,)`, `(DAG,)`, `(model, connection)`, `(DAG, task, prompt)` and `(DAG, run)`.
    """

    first: date
    last: date
    unreadable: int
    total: Sum
    days: list[Sum]
    dags: list[Sum]
    models: list[Sum]
    prompts: list[Sum]
    runs: list[Sum]


def overview(reading: Reading, first: date, last: date) -> Overview:
    """Add up the rows of some days."""
    import pyarrow.compute as pc

    rows = reading.rows
    has_failed = pc.equal(rows["state"], "failed")
    rows = rows.append_column("tokens", pc.add(rows["input_tokens"], rows["output_tokens"]))
    rows = rows.append_column("failed_usd", pc.if_else(has_failed, rows["cost_usd"], 0.0))
    days = {each.key[0]: each for each in _by(rows, "day")}
    every_day = [str(first + timedelta(number)) for number in range((last - first).days + 1)]
    return Overview(
        first,
        last,
        reading.unreadable,
        next(iter(_by(rows)), Sum(())),
        [days.get(day, Sum((day,))) for day in every_day],
        _by(rows, "dag_id"),
        _by(rows, "model", "conn_id"),
        _by(rows.filter(pc.not_equal(rows["prompt"], "")), "dag_id", "task_id", "prompt"),
        _by(rows, "dag_id", "run_id"),
    )


def _by(rows: pa.Table, *columns: str) -> list[Sum]:
    """Add up the rows with the same values in these columns; those with the highest cost, then most tokens, first."""
    if not rows.num_rows:
        return []
    amounts = [("id", "count_distinct"), *((name, "sum") for name in AMOUNTS)]
    found = rows.group_by(list(columns)).aggregate(amounts).to_pylist()
    sums = [
        Sum(
            tuple(each[name] for name in columns),
            each["id_count_distinct"],
            *(each[f"{name}_sum"] for name in AMOUNTS),
        )
        for each in found
    ]
    return sorted(sums, key=lambda each: (-each.cost_usd, -each.tokens, each.key))
