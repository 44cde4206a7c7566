"""A fine-tuning run on a real Airflow whose worker, triggerer and provider are killed (-9) while it goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import PROJECT
from tests.emulator import JOBS, Emulator
from tests.stack import RunningAirflow, processes_of, wait_until

DAG = "fine_tuning"
pytestmark = pytest.mark.needs_dags(DAG)
SHORT = {"evaluation_size": 1, "margin": 0}


def started_with(airflow: RunningAirflow, *words: str) -> psutil.Process:
    """The one process of the stack whose command has these words, and whose parent has not."""
    found = [p for p in processes_of(airflow.home) if all(word in p.cmdline() for word in words)]
    return next(p for p in found if p.ppid() not in {other.pid for other in found})


def kill(process: psutil.Process) -> tuple[list[str], dict[str, str]]:
    """Kill a process with all its children, and return how it was started."""
    command, environment = process.cmdline(), process.environ()
    family = [process, *process.children(recursive=True)]
    for each in family:
        each.kill()
    psutil.wait_procs(family, timeout=10)
    return command, environment


@pytest.fixture(scope="session")
def restarted(airflow: RunningAirflow) -> Iterator[Any]:
    """Kill a process and start it again, for the rest of the session: other tests use the same stack."""
    children = []

    def restart(*words: str) -> None:
        command, environment = kill(started_with(airflow, *words))
        with (airflow.home / "logs" / "restarted.log").open("ab") as log:
            children.append(subprocess.Popen(command, env=environment, cwd=PROJECT, stdout=log, stderr=log))

    yield restart
    for child in children:
        processes = [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]
        for process in processes:
            process.terminate()
        for process in psutil.wait_procs(processes, timeout=60)[1]:
            process.kill()
        child.wait()


@pytest.fixture
def provider(airflow: RunningAirflow) -> Emulator:
    command = started_with(airflow, "local.openai_emulator").cmdline()
    return Emulator(f"http://127.0.0.1:{command[command.index('--port') + 1]}/v1")


def state(airflow: RunningAirflow, run_id: str, task_id: str = "fine_tune") -> str | None:
    return airflow.states(DAG, run_id).get(task_id)


def jobs_of(provider: Emulator, run_id: str) -> list[dict[str, Any]]:
    return [job for job in provider.jobs() if (job["metadata"] or {}).get("airflow_run_id") == run_id]


def test_worker_triggerer_and_provider_are_killed_and_there_is_one_job_and_its_model(airflow, provider, restarted):
    provider.next_job(hold="running")
    provider.fault("POST", f"{JOBS}$", delay=20)
    run_id = airflow.trigger(DAG, SHORT)

    # The worker, between the creating call and its answer.
    wait_until(lambda: jobs_of(provider, run_id))
    scheduler = started_with(airflow, "local.preloaded_airflow", "scheduler")
    (worker,) = [p for p in scheduler.children(recursive=True) if _talks_to(p, provider)]
    worker.kill()
    wait_until(lambda: state(airflow, run_id) == "deferred")
    (job,) = jobs_of(provider, run_id)
    assert airflow.xcom(DAG, run_id, "fine_tune", "job_id") == job["id"]
    assert airflow.xcom(DAG, run_id, "fine_tune", "_link_JobLink").endswith(job["id"])

    # The triggerer, while it waits.
    wait_until(lambda: provider.requests("GET", f"{JOBS}/{job['id']}"))
    restarted("local.preloaded_airflow", "triggerer")
    seen = len(provider.requests("GET", f"{JOBS}/{job['id']}"))
    wait_until(lambda: len(provider.requests("GET", f"{JOBS}/{job['id']}")) > seen + 1)

    # The provider's server.
    restarted("local.openai_emulator")
    wait_until(lambda: provider.requests("GET", f"{JOBS}/{job['id']}") if _answers(provider) else None)
    (job,) = jobs_of(provider, run_id)
    assert job["status"] == "running", "a restart has cancelled the job"
    provider.set_job(job["id"], "succeeded")
    airflow.succeeds(DAG, run_id)
    (job,) = jobs_of(provider, run_id)
    model = airflow.xcom(DAG, run_id, "fine_tune", "return_value")
    assert model == job["fine_tuned_model"]
    (event,) = [each for each in airflow.asset_events("tuned_model") if each["source_run_id"] == run_id]
    assert event["extra"]["model"] == model

    # Cleared, it gives the same at no cost.
    tries = _try_number(airflow, run_id)
    body = {"dag_run_id": run_id, "task_ids": ["fine_tune"], "dry_run": False, "only_failed": False}
    airflow.post(f"dags/{DAG}/clearTaskInstances", body).raise_for_status()
    wait_until(lambda: _try_number(airflow, run_id) > tries and state(airflow, run_id) == "success")
    assert airflow.xcom(DAG, run_id, "fine_tune", "return_value") == model
    assert len(jobs_of(provider, run_id)) == 1


def test_a_waiting_task_that_a_person_marks_failed_cancels_its_job(airflow, provider):
    provider.next_job(hold="running")
    run_id = airflow.trigger(DAG, SHORT)
    wait_until(lambda: state(airflow, run_id) == "deferred")
    (job,) = jobs_of(provider, run_id)
    wait_until(lambda: provider.requests("GET", f"{JOBS}/{job['id']}"))
    airflow.patch(f"dags/{DAG}/dagRuns/{run_id}/taskInstances/fine_tune", {"new_state": "failed"}).raise_for_status()
    wait_until(lambda: jobs_of(provider, run_id)[0]["status"] == "cancelled")
    assert airflow.wait_for(DAG, run_id) == "failed"


def _answers(provider: Emulator) -> bool:
    try:
        return bool(provider.jobs())
    except httpx.TransportError:
        return False


def _talks_to(process: psutil.Process, provider: Emulator) -> bool:
    port = httpx.URL(provider.url).port
    return any(line.raddr and line.raddr.port == port for line in process.net_connections("tcp"))


def _try_number(airflow: RunningAirflow, run_id: str) -> int:
    (task,) = [t for t in airflow.task_instances(DAG, run_id) if t["task_id"] == "fine_tune"]
    return int(task["try_number"])
