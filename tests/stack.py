"""A local stack for tests: the commands that start and stop it, and its REST API with what only tests need."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import psutil

from local.airflow_api import AirflowAPI
from tests.conftest import PROJECT

Found = TypeVar("Found")

# Each look at a run costs the stack 0.02 s of CPU, which the run then lacks.
LOOK_S = 0.3


def command(module: str, *arguments: str, home: Path, port: int | None = None) -> list[str]:
    where = ["--home", str(home)] + (["--port", str(port)] if port else [])
    return [sys.executable, "-m", f"local.{module}", *arguments, *where]


def local(module: str, *arguments: str, home: Path, port: int | None = None, **variables: str):
    """Run a command of the local stack to its end."""
    return subprocess.run(
        command(module, *arguments, home=home, port=port),
        cwd=PROJECT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=1500,
    )


def stop(home: Path) -> None:
    """Stop a stack completely, even if this process is interrupted: xdist does so five seconds after a Ctrl-C."""
    end = command("stack", "stop", home=home)
    subprocess.Popen(end, cwd=PROJECT, start_new_session=True, stdout=subprocess.DEVNULL).wait()


def processes_of(home: Path) -> list[psutil.Process]:
    """Every process whose environment or command names this stack's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("AIRFLOW_HOME") == str(home / "airflow"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(condition: Callable[[], Found], timeout: float = 300, pause: float = 0.1) -> Found:
    """Return the condition's result as soon as it is true."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(pause)
    return found


class RunningAirflow(AirflowAPI):
    """The REST API of a running stack.

    :param home: the stack's folder.
    :param started: the moment before it was started.
    """

    def __init__(self, url: str, home: Path, started: str) -> None:
        super().__init__(url)
        self.home = home
        self.started = started

    def post(self, path: str, body: Any) -> Any:
        """Return the answer to a POST, with any status."""
        return self._http.post(f"/api/v2/{path}", json=body)

    def patch(self, path: str, body: Any) -> Any:
        """Return the answer to a PATCH, with any status."""
        return self._http.patch(f"/api/v2/{path}", json=body)

    def get(self, path: str, **params: Any) -> Any:
        return self._json("GET", f"/api/v2/{path}", params=params)

    def update_asset(self, name: str, extra: dict[str, Any] | None = None) -> None:
        """Create an event of the asset, as a person or another system does."""
        (asset,) = self.get("assets", name_pattern=name)["assets"]
        self.post("assets/events", {"asset_id": asset["id"], "extra": extra or {}}).raise_for_status()

    def asset_events(self, name: str) -> list[dict[str, Any]]:
        (asset,) = self.get("assets", name_pattern=name)["assets"]
        query = {"asset_id": asset["id"], "limit": 100}
        # Airflow 3.1.8 answers with 500 until the run that the event has created starts.
        response = wait_until(lambda: (r := self._http.get("/api/v2/assets/events", params=query)).is_success and r)
        return response.json()["asset_events"]

    def wait_for(self, dag_id: str, run_id: str, timeout: float = 600) -> str:
        """Wait until the run has ended, and return its state."""
        return wait_until(lambda: {self.run(dag_id, run_id)["state"]} & {"success", "failed"}, timeout, LOOK_S).pop()

    def succeeds(self, dag_id: str, run_id: str, timeout: float = 600) -> None:
        """Wait until the run has ended, and fail with the end of its tasks' logs if it has not succeeded."""
        if self.wait_for(dag_id, run_id, timeout) != "success":
            failed = [task for task in self.task_instances(dag_id, run_id) if task["state"] == "failed"]
            logs = [
                [
                    task["task_id"],
                    *self.log(dag_id, run_id, task["task_id"], task["try_number"], task["map_index"])[-20:],
                ]
                for task in failed
            ]
            raise AssertionError("\n".join([f"{dag_id} has failed.", *(line for log in logs for line in log)]))

    def finish(self, dag_id: str, conf: dict[str, Any] | None = None) -> str:
        """Start a run, wait for its success and return its id."""
        run_id = self.trigger(dag_id, conf)
        self.succeeds(dag_id, run_id)
        return run_id

    def runs_by_assets(self, dag_id: str, since: str) -> list[str]:
        """Return the ids of the runs that asset events have started since this time (ISO 8601)."""
        runs = self.runs(dag_id, run_type="asset_triggered", run_after_gte=since)
        return [run["dag_run_id"] for run in runs]

    def wait_for_run_by_asset(self, dag_id: str, since: str, count: int = 1) -> list[str]:
        """Return the ids of the runs that assets started since then, once there are `count` and all have succeeded."""
        wait_until(lambda: len(self.runs_by_assets(dag_id, since)) >= count, pause=LOOK_S)
        runs = self.runs_by_assets(dag_id, since)
        for run_id in runs:
            self.succeeds(dag_id, run_id)
        return runs

    def states(self, dag_id: str, run_id: str) -> dict[str, str]:
        """State by task id; for mapped tasks by `task_id[map index]`."""
        return {
            task["task_id"] if task["map_index"] < 0 else f"{task['task_id']}[{task['map_index']}]": task["state"]
            for task in self.task_instances(dag_id, run_id)
        }


def now() -> str:
    return datetime.now(UTC).isoformat()
