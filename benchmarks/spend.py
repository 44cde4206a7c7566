"""What the ledger and budgets cost: a look at a budget, and a view of the page after many attempts.

python -m benchmarks.spend
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from statistics import median
from time import perf_counter
from uuid import uuid4

ATTEMPTS = 10_000
LOOKS = 50
DAYS = 7


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GENAI_STORAGE"] = folder
        measure_budgets()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GENAI_STORAGE"] = folder
        measure_page()


def measure_budgets() -> None:
    from include.spend import budgets

    meter = budgets.Meter("conn", budgets.Budgets(day_usd=1e6, month_usd=1e6), None)

    def spend() -> None:
        meter.add(0.001, "model")
        meter.save()

    print(f"adding an attempt to two budgets, in the background: {mean_ms(spend, ATTEMPTS):.1f} ms")
    looks = [mean_ms(meter.check) for _ in range(LOOKS)]
    print(f"looking at two budgets after {ATTEMPTS:,} attempts: {median(looks):.1f} ms")


def measure_page() -> None:
    """Measure what the page reads and adds up for a view: today's small files, and the days before as Parquet."""
    from include.spend.reading import read_days, roll_up
    from include.spend.sums import overview

    now = datetime.now(UTC)
    first, today = (now - timedelta(DAYS - 1)).date(), now.date()

    def view() -> None:
        found = overview(read_days(first, today), first, today)
        assert found.total.attempts == DAYS * ATTEMPTS, found.total

    for days_ago in range(1, DAYS):
        write_attempts(now - timedelta(days_ago), ATTEMPTS)
        roll_up((now - timedelta(days_ago)).date())
    write_attempts(now, ATTEMPTS)
    print(f"a view of {DAYS} days with {ATTEMPTS:,} attempts each, the first of a process: {mean_ms(view):.0f} ms")
    print(f"  the next: {median(mean_ms(view) for _ in range(10)):.0f} ms")


def write_attempts(moment: datetime, number: int) -> None:
    from include.common.storage import storage_path
    from include.spend.ledger import FOLDER, Line, Record

    folder = storage_path(*FOLDER, str(moment.date())).path
    os.makedirs(folder, exist_ok=True)
    for each in range(number):
        line = Line(kind="chat", conn_id="conn", model=f"model-{each % 3}", prompt=f"{each % 20:012}", calls=1)
        line.input_tokens, line.output_tokens, line.cost_usd = 500, 100, 0.001
        record = Record(
            id=uuid4().hex,
            dag_id=f"dag_{each % 26}",
            run_id=f"scheduled__{moment.date()}T{each % 24:02}:00:00+00:00",
            task_id=f"task_{each % 5}",
            map_index=-1,
            try_number=1,
            logical_date=moment,
            started=moment,
            updated=moment,
            state="success" if each % 50 else "failed",
            lines=[line],
        )
        with open(f"{folder}/{record.id}.json", "w", encoding="utf-8") as file:
            file.write(record.model_dump_json())


def mean_ms(work: Callable[[], object], times: int = 1) -> float:
    started = perf_counter()
    for _ in range(times):
        work()
    return (perf_counter() - started) / times * 1000


if __name__ == "__main__":
    main()
