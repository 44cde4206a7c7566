"""Many fine-tuning jobs that wait on one triggerer: what they cost it, and how late their tasks end.

    python -m benchmarks.deferred_jobs

Starts a local stack and a DAG with a mapped `OpenAIFineTuneOperator`, whose jobs the emulator (a fake) holds until all
wait. Then it measures the triggerer's CPU and memory for a while: its own, and its runner's, which looks at each job
every 30 seconds. Finally it lets one job after the other succeed, at a pace that the scheduler of a small machine can
follow. Starting and ending the tasks takes most of the time, about a second each on two cores.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path

import httpx
import psutil

from benchmarks.stack import MeasuredStack, add_dag, measured_stack

JOBS = 500
DAG_ID = "deferred_jobs"
DAG_FILE = f"""
from airflow.sdk import dag, task
from include.fine_tuning.operator import OpenAIFineTuneOperator

@dag(schedule=None, tags=["benchmark"], max_active_tasks=64)
def deferred_jobs():
    @task
    def names():
        return [f"job-{{n}}" for n in range({JOBS})]

    @task
    def upload():
        import asyncio
        from include.common.stored_files import input_file
        from include.fine_tuning.checks import TRAINING
        from include.jobs.files import upload_once
        from include.jobs.service import openai_service
        return asyncio.run(upload_once(openai_service("openai_default"), input_file(None, TRAINING)))

    OpenAIFineTuneOperator.partial(
        task_id="fine_tune", fine_tuning_file_id=upload(), poke_interval=30, retries=2
    ).expand(suffix=names())

deferred_jobs()
"""
WATCHED_S = 60.0
PAUSE_S = 1.5


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        add_dag(Path(home), DAG_ID, DAG_FILE, with_template=False)
        with measured_stack(Path(home), DAG_ID) as stack:
            _measure(stack)


def _measure(stack: MeasuredStack) -> None:
    emulator = stack.process("openai-emulator").cmdline()
    url = f"http://127.0.0.1:{emulator[emulator.index('--port') + 1]}/emulator/jobs"
    for _ in range(JOBS):
        httpx.post(url, json={"hold": "running"}).raise_for_status()
    run_id = stack.api.trigger(DAG_ID)
    started = time.monotonic()
    while (waiting := list(stack.api.states(DAG_ID, run_id).values()).count("deferred")) < JOBS:
        print(f"{time.monotonic() - started:5.0f} s  {waiting} of {JOBS} jobs wait", flush=True)
        time.sleep(10)

    triggerer = [stack.process("triggerer")]
    triggerer += triggerer[0].children(recursive=True)  # itself, and the runner of its triggers
    seen, before = _looks(url), [_cpu(process) for process in triggerer]
    time.sleep(WATCHED_S)
    looks = _looks(url) - seen
    itself, *runner = (_cpu(process) - used for process, used in zip(triggerer, before, strict=True))
    memory = sum(process.memory_full_info().pss for process in triggerer) / 2**20
    shares = f"{100 * itself / WATCHED_S:.1f} % of a core and its runner {100 * sum(runner) / WATCHED_S:.1f} %"
    print(f"{JOBS} jobs wait: the triggerer itself uses {shares}, with {memory:.0f} MB")
    print(f"{looks} looks in {WATCHED_S:.0f} s: {1000 * sum(runner) / looks:.1f} ms of CPU each in the runner")

    succeeded = {}
    for job in httpx.get(url).json():
        httpx.post(f"{url}/{job['id']}", json={"status": "succeeded"}).raise_for_status()
        succeeded[job["id"]] = time.time()
        time.sleep(PAUSE_S)
    stack.api.wait_for(DAG_ID, run_id, timeout=3600)
    delays = []
    for task in stack.api.task_instances(DAG_ID, run_id):
        if task["task_id"] == "fine_tune":
            job_id = stack.api.xcom(DAG_ID, run_id, "fine_tune", "job_id", task["map_index"])
            delays.append(datetime.fromisoformat(task["end_date"]).timestamp() - succeeded[job_id])
    delays.sort()
    p95 = delays[min(len(delays) - 1, int(0.95 * len(delays)))]
    print(f'from "succeeded" to the task\'s end: median {statistics.median(delays):.1f} s, p95 {p95:.1f} s')


def _cpu(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def _looks(url: str) -> int:
    """Return how often the provider was asked for a job."""
    requests = httpx.get(url.replace("jobs", "requests")).json()
    return sum(re.fullmatch(r"/v1/fine_tuning/jobs/[^/]+", request["path"]) is not None for request in requests)


if __name__ == "__main__":
    main()
