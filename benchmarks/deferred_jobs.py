"""Many fine-tuning jobs that wait on one triggerer: what they cost it, and how late their tasks end.

    python -m benchmarks.deferred_jobs [--jobs 500]

Starts a local stack and a DAG with a mapped `OpenAIFineTuneOperator`, whose jobs the emulator (a fake) holds until all
wait. Then it measures the triggerer's CPU and memory for a while: its own, and its runner's, which looks at each job
every 30 seconds. At last it lets one job after the other succeed, at a pace that the scheduler of a small machine can
follow. Starting and ending the tasks takes most of the time, about a second each on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path

import httpx
import psutil

from local.processes import free_ports
from local.stack import Stack

DAG_ID = "deferred_jobs"
DAG_FILE = """
from airflow.sdk import dag, task
from include.fine_tuning.operator import OpenAIFineTuneOperator

@dag(schedule=None, tags=["benchmark"], max_active_tasks=64)
def deferred_jobs():
    @task
    def names():
        return [f"job-{n}" for n in range(JOBS)]

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
BUNDLE = "airflow.dag_processing.bundles.local.LocalDagBundle"
WATCHED_S = 60.0
PAUSE_S = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deferred_jobs", description=__doc__)
    parser.add_argument("--jobs", type=int, default=500, help="how many wait at once (default: %(default)s)")
    jobs = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as home:
        dags = Path(home) / "dags"
        dags.mkdir()
        (dags / "deferred_jobs.py").write_text(DAG_FILE.replace("JOBS", str(jobs)))
        bundles = [{"name": "benchmark", "classpath": BUNDLE, "kwargs": {"path": str(dags)}}]
        os.environ["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"] = json.dumps(bundles)
        os.environ["AIRFLOW__API__MAXIMUM_PAGE_LIMIT"] = "1000"
        stack = Stack(Path(home), free_ports(1)[0])
        try:
            stack.start(say=print)
            _measure(stack, jobs)
        finally:
            stack.stop()


def _measure(stack: Stack, jobs: int) -> None:
    emulator = _command(stack, "openai-emulator")
    url = f"http://127.0.0.1:{emulator[emulator.index('--port') + 1]}/emulator/jobs"
    for _ in range(jobs):
        httpx.post(url, json={"hold": "running"}).raise_for_status()
    while DAG_ID not in stack.api.dags():
        time.sleep(0.5)
    run_id = stack.api.trigger(DAG_ID)
    started = time.monotonic()
    while (waiting := _states(stack, run_id).count("deferred")) < jobs:
        print(f"{time.monotonic() - started:5.0f} s  {waiting} of {jobs} jobs wait", flush=True)
        time.sleep(10)

    triggerer = [_process(stack, "triggerer")]
    triggerer += triggerer[0].children(recursive=True)  # itself, and the runner of its triggers
    seen, before = _looks(url), [_cpu(process) for process in triggerer]
    time.sleep(WATCHED_S)
    looks = _looks(url) - seen
    itself, *runner = (_cpu(process) - used for process, used in zip(triggerer, before, strict=True))
    memory = sum(process.memory_full_info().pss for process in triggerer) / 2**20
    shares = f"{100 * itself / WATCHED_S:.1f} % of a core and its runner {100 * sum(runner) / WATCHED_S:.1f} %"
    print(f"{jobs} jobs wait: the triggerer itself uses {shares}, with {memory:.0f} MB")
    print(f"{looks} looks in {WATCHED_S:.0f} s: {1000 * sum(runner) / looks:.1f} ms of CPU each in the runner")

    succeeded = {}
    for job in httpx.get(url).json():
        httpx.post(f"{url}/{job['id']}", json={"status": "succeeded"}).raise_for_status()
        succeeded[job["id"]] = time.time()
        time.sleep(PAUSE_S)
    while stack.api.run(DAG_ID, run_id)["state"] not in ("success", "failed"):
        time.sleep(2)
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


def _states(stack: Stack, run_id: str) -> list[str]:
    return [str(task["state"]) for task in stack.api.task_instances(DAG_ID, run_id)]


def _process(stack: Stack, name: str) -> psutil.Process:
    pid, _ = json.loads((stack.home / "processes.json").read_text())[name]
    return psutil.Process(pid)


def _command(stack: Stack, name: str) -> list[str]:
    return _process(stack, name).cmdline()


if __name__ == "__main__":
    main()
