"""Runs a minute and answers a minute against the number of workers, on Celery, PostgreSQL and S3.

    python -m benchmarks.fleet [--workers 1 2 4]

All workers are on this machine, whose cores soon are the limit. The model is a slow fake, and each worker runs few
tasks at the same time: the figures show whether one more worker does its share, not how fast a worker is. Times are
those at which the model's server was asked.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise

from tests.fleet import BUCKET, Fleet, running_fleet
from tests.scripted_model import ScriptedServer, running

TASKS = 2  # of a worker at the same time
RUNS = 10  # for each worker
RUN_LATENCY_S = 15.0
ROWS = 800  # for each worker
ROW_LATENCY_S = 2.0


def runs_a_minute(fleet: Fleet, model: ScriptedServer, workers: int) -> float:
    """Start many runs of `on_demand_inference`, which has one task with one call."""
    model.script(latency=RUN_LATENCY_S)
    fleet.set_pool(TASKS * workers)  # a task that waits in a worker's queue for too long counts as lost
    number = RUNS * workers
    runs = [fleet.begin("on_demand_inference", {"message": f"Question {each}"}) for each in range(number)]
    for run_id in runs:
        fleet.api.succeeds("on_demand_inference", run_id, 1800)
    return _a_minute(model, TASKS * workers)


def answers_a_minute(fleet: Fleet, model: ScriptedServer, workers: int) -> float:
    """Run a batch for each worker at the same time, in a pool that takes them all."""
    model.script(latency=ROW_LATENCY_S)
    fleet.set_pool(8 * workers)
    runs = []
    for batch in range(workers):
        lines = [json.dumps({"review_id": n, "review": f"{workers} workers, batch {batch}, {n}"}) for n in range(ROWS)]
        name = f"{workers}-{batch}.jsonl"
        fleet.s3().put_object(Bucket=BUCKET, Key=f"genai/{name}", Body="\n".join(lines).encode())
        runs.append(fleet.begin("batch_inference_at_scale", {"input": f"s3://aws_default@{BUCKET}/genai/{name}"}))
    for run_id in runs:
        fleet.api.succeeds("batch_inference_at_scale", run_id, 1800)
    assert model.answered().total() == ROWS * workers
    return _a_minute(model, 0)


def _a_minute(model: ScriptedServer, first: int) -> float:
    """Calls a minute, without the first ones, which all begin at once, and the slow last tenth."""
    times = sorted(each["time"] for each in model.seen())
    times = times[first : len(times) * 9 // 10]
    return (len(times) - 1) / (times[-1] - times[0]) * 60


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="how many (default: 1 2)")
    numbers = sorted(parser.parse_args().workers, reverse=True)
    found = {}
    with running() as model, running_fleet(numbers[0], tasks=TASKS) as fleet:
        fleet.use_model(model.connection())
        for before, workers in pairwise([numbers[0], *numbers]):
            for part in fleet.workers[workers:before]:
                fleet.kill(part)
            found[workers] = [runs_a_minute(fleet, model, workers), answers_a_minute(fleet, model, workers)]
            print(workers, *(f"{each:.0f}" for each in found[workers]), flush=True)
    fewest = numbers[-1]
    print("workers   runs a minute (share of linear)   answers a minute (share of linear)")
    for workers, rates in sorted(found.items()):
        shares = [
            f"{rate:8.0f} ({rate / one * fewest / workers:.2f})" for rate, one in zip(rates, found[fewest], strict=True)
        ]
        print(f"{workers:7}   {shares[0]:31}   {shares[1]}")


if __name__ == "__main__":
    main()
