"""What people do with the template: DAGs of their own beside ours, and ours deleted. Done in a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT, dag_files, own_dag_files
from tests.project_files import project_files

pytestmark = pytest.mark.one_stack

# A classic DAG without tags and retries, in the folder of our patterns; unformatted, and not as our linter likes it.
CLASSIC = """
import os, sys
from airflow.sdk import DAG
from airflow.providers.standard.operators.python import PythonOperator
with DAG('anything-at all'.replace(' ', '.'), schedule=None):
    PythonOperator(task_id='t', python_callable=print)
"""
TASKFLOW = """
from airflow.sdk import dag, task
from team.names import NAME


@dag(dag_id=f"{NAME}_one", schedule="@daily", default_args={"owner": "ada", "retries": 1}, tags=["genai"])
def one():
    @task
    def hello():
        return "hello"

    hello()


@dag(dag_id=f"{NAME}_two", schedule=None, default_args={"retries": 3})
def two():
    @task
    def hello(): ...

    hello.expand_kwargs([{}])


one()
two()
"""
SAME_NAME_AS_OURS = TASKFLOW.replace('f"{NAME}_', 'f"other_{NAME}_')
HEAVY = "import pandas\n" + TASKFLOW.replace('f"{NAME}_', 'f"heavy_{NAME}_')
BROKEN = "from airflow.sdk import dag\n\nfrom include.nothing import x\n"


def environment(project: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": ""}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this project as a tarball has it, without Git and executable bits, and without DAGs of others."""
    folder = tmp_path_factory.mktemp("copy")
    for name in project_files():
        if PROJECT / name not in own_dag_files():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def with_own_dags(project: Path) -> Path:
    """The copy, with DAGs of others."""
    shutil.copytree(project, folder := project.parent / "with-own-dags")
    dags = folder / "dags"
    (dags / "team" / "deeper").mkdir(parents=True)
    (dags / "team" / "__init__.py").touch()
    (dags / "team" / "names.py").write_text("NAME = 'mine'\n")
    (dags / "patterns" / "classic.py").write_text(CLASSIC)
    (dags / "team" / "deeper" / "two_in_one.py").write_text(TASKFLOW)
    (dags / "team" / "routing.py").write_text(SAME_NAME_AS_OURS)
    (dags / "heavy.py").write_text(HEAVY)
    (dags / "team" / "broken.py").write_text(BROKEN)
    return folder


def run_pytest(project: Path, *arguments: str) -> tuple[int, str]:
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", *arguments],
        cwd=project,
        env=environment(project),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    return ended.returncode, ended.stdout + ended.stderr


def test_tests_and_make_call_no_git_in_a_folder_without_it(project, tmp_path, monkeypatch):
    called = tmp_path / "called"
    (tmp_path / "git").write_text(f'#!/bin/sh\necho "$@" >> {called}\nexit 128\n')
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    status, said = run_pytest(
        project, *(f"tests/test_{name}.py" for name in ("astro_project", "newer_runtime", "make"))
    )
    assert status == 0, said[-4000:]
    for target in ("start", "demo", "test"):
        planned = subprocess.run(
            ["make", "--dry-run", target], cwd=project, capture_output=True, text=True, timeout=600
        )
        assert planned.returncode == 0, planned.stderr
    assert not called.exists(), called.read_text()


def test_docs_checks_and_contract_pass_beside_dags_of_others(with_own_dags):
    # make copy would install into an environment in the copy.
    tests = ["tests/test_docs.py", "tests/test_dag_contract.py", "tests/test_own_dags.py", "-k", "not make_copy"]
    status, said = run_pytest(with_own_dags, *tests)
    assert status == 0, said[-4000:]


def test_dags_of_others_are_tested_when_it_is_switched_on(with_own_dags):
    status, said = run_pytest(with_own_dags, "tests/test_own_dags.py", "-o", "check_own_dags=true")
    failed = set(re.findall(r"^FAILED .*::test_(\w+)\[dags/([\w/]+)\.py\]", said, re.MULTILINE))
    assert status == 1, said[-4000:]
    assert failed == {
        ("its_tasks_retry", "patterns/classic"),
        ("it_imports_no_heavy_module", "heavy"),
        ("it_is_imported_without_network_database_or_connection", "team/broken"),
        ("its_tasks_retry", "team/broken"),  # it cannot be asked
    }, said[-4000:]


def test_an_unknown_dag_is_answered_with_those_that_there_are(with_own_dags, tmp_path):
    demo = [sys.executable, "-m", "local.demo", "--home", str(tmp_path), "--dags", "routing,nothing"]
    ended = subprocess.run(
        demo, cwd=with_own_dags, env=environment(with_own_dags), capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 1
    assert "There is no DAG nothing. There are: " in ended.stderr
    for dag_id in ("routing", "anything-at.all", "mine_one", "mine_two", "other_mine_one"):
        assert re.search(rf"[ ,]{dag_id}[,.]", ended.stderr), ended.stderr
    assert "dags/team/broken.py cannot be imported: ModuleNotFoundError" in ended.stderr


def test_lint_leaves_the_style_of_other_dags_to_their_authors(with_own_dags):
    planned = subprocess.run(
        ["make", "--dry-run", "lint"], cwd=with_own_dags, check=True, capture_output=True, text=True
    ).stdout
    commands = re.findall(r"^\S+/(ruff .*)$", planned, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        lint = f"{Path(sys.executable).parent}/{command}"
        done = subprocess.run(lint, shell=True, cwd=with_own_dags, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    ours = with_own_dags / "dags" / "patterns" / "routing.py"
    if ours.exists():
        ours.write_text(ours.read_text() + "import os\n")
        assert subprocess.run(lint, shell=True, cwd=with_own_dags, capture_output=True).returncode == 1


def test_each_dag_of_the_template_can_be_deleted(project, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.deleted_dags"],
        cwd=project,
        env={**environment(project), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    count = len(dag_files())
    assert f"{count} DAGs, {count + 2} of {count + 2} cases passed" in ended.stdout, ended.stdout + ended.stderr[-3000:]
