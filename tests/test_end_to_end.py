"""The demo on a real stack: scheduler, dag-processor, triggerer, API server and the embedded model."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from local.processes import free_ports, require_free_port
from tests.conftest import PROJECT, dag_files, model_connection
from tests.stack import RunningAirflow, command, local, processes_of, wait_until

DAGS = {path.stem for path in dag_files()}


@pytest.fixture(scope="module")
def home(airflow: RunningAirflow) -> Path:
    """The folder of the stack that all these files share."""
    return airflow.home


@pytest.fixture(scope="module")
def demo(home: Path) -> subprocess.CompletedProcess[str]:
    return local("demo", home=home)


def test_the_demo_runs_every_dag_to_success_and_reports_it(demo, home):
    assert demo.returncode == 0, demo.stdout + demo.stderr
    results = [each for each in json.loads((home / "demo.json").read_text()) if each["dag_id"] in DAGS]
    assert {result["dag_id"] for result in results} == DAGS
    for result in results:
        assert set(result) == {"dag_id", "state", "seconds", "tasks", "tokens", "cost_usd", "result"}
        assert result["state"] == "success"
        assert result["tasks"] > 0
        assert result["result"]
        assert result["dag_id"] in demo.stdout


@pytest.mark.needs_dags("prompt_chaining", "multi_agent", "batch_inference", "rag_pipeline")
def test_the_demo_leaves_files_that_a_person_can_open(demo, home):
    artifacts = home / "artifacts"
    assert list(artifacts.glob("prompt_chaining/*/reply.json"))
    assert list(artifacts.glob("multi_agent/*/report.md"))
    assert list(artifacts.glob("batch_inference/*/chart.svg"))
    (answer,) = artifacts.glob("rag_pipeline/*/answer.json")
    assert json.loads(answer.read_text())["question"]


@pytest.mark.needs_dags("batch_inference")
def test_the_embedded_model_does_not_give_every_review_the_same_label(demo, home):
    (report,) = (home / "artifacts").glob("batch_inference/*/report.json")
    assert sum(count > 0 for count in json.loads(report.read_text())["counts"].values()) >= 2


@pytest.mark.needs_dags("prompt_chaining")
def test_no_prompt_and_no_answer_is_in_the_logs_of_real_workers(demo, home):
    logs = "\n".join(path.read_text(errors="replace") for path in (home / "airflow" / "logs").rglob("*.log"))
    (reply,) = (home / "artifacts").glob("prompt_chaining/*/reply.json")
    answer = json.loads(reply.read_text())["reply"]["message"]
    assert "tokens)" in logs, "the logs are not where this test looks"
    assert "shows three of our vans as offline" not in logs
    assert answer not in logs


def test_a_demo_uses_the_stack_that_already_runs_and_leaves_it_running(demo, airflow):
    assert f"using the stack that runs at {airflow.url}" in demo.stdout
    assert httpx.get(f"{airflow.url}/api/v2/version").is_success


def test_the_ui_opens_without_a_login(airflow):
    with httpx.Client(base_url=airflow.url, follow_redirects=True) as browser:
        assert browser.get("/auth/token/login").is_success
        assert "_token" in browser.cookies
        assert browser.get("/").is_success


@pytest.mark.needs_dags("refund_agent")
def test_an_agent_whose_worker_is_killed_goes_on_from_its_answers_and_asks_anew_when_it_is_cleared(demo, airflow, home):
    run_id = airflow.trigger("refund_agent")
    folder = home / "artifacts" / "stored_answers" / "runs" / "refund_agent"

    def task() -> dict[str, Any]:
        return next(ti for ti in airflow.task_instances("refund_agent", run_id) if ti["task_id"] == "handle_request")

    def answers() -> list[Path]:
        found = [path for path in folder.rglob("*.json") if not path.name.startswith("effect-")]
        return [path for path in found if json.loads(path.read_text())["asked_by"]["run_id"] == run_id]

    def used() -> Any:
        return airflow.xcom("refund_agent", run_id, "handle_request", "llm_usage")

    wait_until(answers)
    title = f"airflow worker -- {task()['id']}"  # not its supervisor, whose title goes on
    (worker,) = [
        each for each in psutil.process_iter(["cmdline"]) if " ".join(each.info["cmdline"] or []).strip() == title
    ]
    worker.kill()
    wait_until(lambda: airflow.run("refund_agent", run_id)["state"] == "success")
    assert task()["try_number"] == 2
    usage = used()
    assert usage["reused"] >= 1
    assert usage["reused"] + usage["requests"] == len(answers())

    cleared = {"dry_run": False, "only_failed": False, "dag_run_id": run_id, "task_ids": ["handle_request"]}
    assert airflow.post("dags/refund_agent/clearTaskInstances", cleared).is_success
    wait_until(lambda: task()["try_number"] == 3 and airflow.run("refund_agent", run_id)["state"] == "success")
    assert "reused" not in used()


def test_starting_twice_says_where_it_runs_already_even_if_another_port_is_asked_for(airflow, home):
    assert f"Already running: {airflow.url}" in local("stack", "start", home=home, port=free_ports(1)[0]).stdout


def test_a_busy_port_is_named_with_what_to_do(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        result = local("demo", home=tmp_path, port=number)
    assert result.returncode != 0
    assert f"Port {number}" in result.stderr
    assert f"make demo PORT={number + 1}" in result.stderr


@pytest.mark.one_stack
@pytest.mark.needs_dags("routing")
def test_a_failed_pattern_is_shown_with_the_end_of_its_log_and_the_stack_is_stopped(tmp_path, llmock, monkeypatch):
    home, (port,) = tmp_path / "stack", free_ports(1)
    llmock.fail(401, times=None)
    refused = model_connection(llmock.env()["OPENAI_BASE_URL"])
    monkeypatch.delenv("OPENAI_API_KEY")
    result = local("demo", "--dags", "routing", home=home, port=port, AIRFLOW_CONN_PYDANTICAI_DEFAULT=refused)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "routing.route_incident failed" in result.stdout
    assert "the key was refused" in result.stdout
    assert "pydanticai_default" in result.stdout
    (outcome,) = json.loads((home / "demo.json").read_text())
    assert (outcome["dag_id"], outcome["state"]) == ("routing", "failed")
    assert processes_of(home) == []
    require_free_port(port)


@pytest.mark.one_stack
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_stops_what_it_started(tmp_path, ending):
    home, (port,) = tmp_path / "stack", free_ports(1)
    with subprocess.Popen(
        command("demo", home=home, port=port), cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as demo:
        wait_until(lambda: len(processes_of(home)) >= 4)
        demo.send_signal(ending)
        assert demo.wait(timeout=300) != 0
    assert processes_of(home) == []


INTERRUPTED = """
import os, signal, subprocess, sys
from pathlib import Path
from local.processes import interrupt_on_signals
from local.stack import Stack

class Popen(subprocess.Popen):
    def __init__(self, command, *arguments, **options):
        super().__init__(command, *arguments, **options)
        if sys.argv[3] in command:
            os.kill(os.getpid(), signal.SIGTERM)

subprocess.Popen = Popen
interrupt_on_signals()
Stack(Path(sys.argv[1]), int(sys.argv[2])).start(print)
"""


@pytest.mark.one_stack
@pytest.mark.parametrize("part", ["local.sqs_server", "migrate"])
def test_a_signal_that_comes_while_a_process_is_started_leaves_none_behind(tmp_path, part):
    arguments = [str(tmp_path), str(free_ports(1)[0]), part]
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=300
    )
    assert "KeyboardInterrupt" in ended.stderr
    assert processes_of(tmp_path) == []


SPAWN = """
import os, sys
from pathlib import Path
from local.processes import ProcessGroup

home, *part = sys.argv[1:]
ProcessGroup(Path(home)).spawn("part", part, dict(os.environ), Path(home))
"""


def test_stopping_ends_what_is_remembered_and_says_whether_there_was_something(tmp_path):
    part = [sys.executable, "-c", "import time; time.sleep(600)"]
    subprocess.run([sys.executable, "-c", SPAWN, str(tmp_path), *part], cwd=PROJECT, check=True)
    (pid, _) = json.loads((tmp_path / "processes.json").read_text())["part"]
    assert psutil.pid_exists(pid)
    assert "Stopped." in local("stack", "stop", home=tmp_path).stdout
    assert not psutil.pid_exists(pid)
    assert "Nothing was running." in local("stack", "stop", home=tmp_path).stdout
