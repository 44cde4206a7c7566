"""What the ledger and budgets cost a call: the time to record one, and to look at a budget after many attempts.

python -m benchmarks.spend
"""

from __future__ import annotations

import os
import tempfile
from statistics import median
from time import perf_counter
from types import SimpleNamespace
from typing import Any

CALLS = 2_000
ATTEMPTS = 10_000
LOOKS = 50
CALL_MS = 300


def main() -> None:
    from include.spend import budgets, ledger

    with tempfile.TemporaryDirectory() as folder:
        os.environ["GENAI_STORAGE"] = folder
        ti = SimpleNamespace(id="one", dag_id="d", run_id="r", task_id="t", map_index=-1, try_number=1)
        context: dict[str, Any] = {"ti": ti, "logical_date": None}
        ledger.task_context = lambda: context
        call = ledger.Call("chat", "conn", "model", "0f0f", input_tokens=500, output_tokens=100, cost_usd=0.001)
        times = []
        for _ in range(CALLS):
            started = perf_counter()
            ledger.record(call)
            times.append(perf_counter() - started)
        recorded_ms = sum(times) / CALLS * 1000
        print(f"recording a call: {recorded_ms:.3f} ms, {recorded_ms / CALL_MS:.2%} of a call of {CALL_MS} ms")

        meter = budgets.Meter("conn", budgets.Budgets(day_usd=1e6, month_usd=1e6), None)
        started = perf_counter()
        for _ in range(ATTEMPTS):
            meter.add(0.001, "model")
            meter.save()
        saved_ms = (perf_counter() - started) / ATTEMPTS * 1000
        looks = []
        for _ in range(LOOKS):
            started = perf_counter()
            meter.check()
            looks.append(perf_counter() - started)
        print(f"adding an attempt to two budgets, in the background: {saved_ms:.1f} ms")
        print(f"looking at two budgets after {ATTEMPTS:,} attempts: {median(looks) * 1000:.1f} ms")


if __name__ == "__main__":
    main()
