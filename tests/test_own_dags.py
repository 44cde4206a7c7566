"""What makes sense for every DAG, asked of your own: those in dags/ that the template did not bring.

Off by default. To switch it on, set `check_own_dags = true` under `[tool.pytest.ini_options]` in pyproject.toml.
`make test` and a deploy then check them, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT, own_dag_files, parse
from tests.test_dag_contract import HEAVY_MODULES, setting

# A process of its own, and in it one for each file, so that what one imports is not held against another.
PARSE_EACH = """
import json, os, runpy, sys
import airflow.sdk

heavy, files, report = json.loads(sys.argv[1])

def forbid(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"network at parse time: {args}")

sys.addaudithook(forbid)
for file in files:
    if os.fork() == 0:
        error = None
        try:
            runpy.run_path(file)
        except BaseException as raised:
            error = repr(raised)
        with open(report, "a") as out:
            print(json.dumps([file, {"error": error, "heavy": [n for n in heavy if n in sys.modules]}]), file=out)
        os._exit(0)
    os.wait()
"""

pytestmark = pytest.mark.parametrize("path", own_dag_files(), ids=lambda path: str(path.relative_to(PROJECT)))


@pytest.fixture(autouse=True)
def switched_on(request: pytest.FixtureRequest) -> None:
    if not request.config.getini("check_own_dags"):
        pytest.skip("off: check_own_dags in pyproject.toml switches it on")


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("own-dags")
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ} | {
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////nonexistent/airflow.db",
        "PYTHONPATH": f"{PROJECT}{os.pathsep}{PROJECT / 'dags'}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    argument = json.dumps([HEAVY_MODULES, [str(path) for path in own_dag_files()], str(folder / "report")])
    command = [sys.executable, "-W", "ignore", "-c", PARSE_EACH, argument]
    subprocess.run(command, env=environment, check=True, timeout=600)
    return dict(json.loads(line) for line in (folder / "report").read_text().splitlines())


def test_it_is_imported_without_network_database_or_connection(path: Path, parsed: dict[str, Any]) -> None:
    assert parsed[str(path)]["error"] is None


def test_it_imports_no_heavy_module(path: Path, parsed: dict[str, Any]) -> None:
    assert parsed[str(path)]["heavy"] == [], "import it inside the task: the file is imported at every parse"


def test_its_tasks_retry(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PROJECT / "dags")
    for dag in parse(path).dags.values():
        for task in dag.tasks:
            assert setting(task, "retries") >= 1, f"{dag.dag_id}.{task.task_id}"
