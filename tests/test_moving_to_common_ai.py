"""What `docs/moving-to-common-ai.md` says, done."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from include.ai import COMMON_AI, active_sdk
from tests.conftest import PROJECT, chat_requests, parse
from tests.project_files import project_files

DOC = (PROJECT / "docs" / "moving-to-common-ai.md").read_text(encoding="utf-8")
on_common_ai = pytest.mark.skipif(active_sdk() != COMMON_AI, reason="shows what only common-ai has")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOC, re.DOTALL | re.MULTILINE)


def requirements(folder: str) -> set[str]:
    lines = (PROJECT / folder / "requirements.txt").read_text().splitlines()
    return {line.split("#")[0].strip() for line in lines} - {""}


def test_the_two_files_differ_in_the_image_and_in_the_line_of_the_sdk_only():
    if requirements(".") == requirements("common-ai"):
        pytest.skip("this project has moved")
    assert {name.split("==")[0] for name in requirements(".") ^ requirements("common-ai")} == {
        "airflow-ai-sdk",
        "apache-airflow-providers-common-ai",
    }
    instructions = [
        [line for line in (PROJECT / folder / "Dockerfile").read_text().splitlines() if line[:1] not in ("", "#")]
        for folder in (".", "common-ai")
    ]
    assert [[line.split()[0] for line in lines] for lines in instructions] == [
        ["FROM", "USER", "RUN", "USER", "ENV", "ENV"]
    ] * 2
    assert instructions[0][0] != instructions[1][0]
    assert instructions[0][1:] == instructions[1][1:]


def test_every_command_works_and_moves_the_project_without_naming_the_stack(tmp_path):
    for name in project_files():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, tmp_path / name)

    def run(command: str) -> str:
        return subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    look_first, move, look_again = blocks("bash")
    for command in look_first.splitlines():
        assert ".venv-common-ai/bin/python -m" in run(command.replace("make", "make --dry-run"))
    run(move)
    assert "now: common-ai, Airflow 3.3" in run(look_again.splitlines()[0])
    for target in ("demo", "start", "stop", "test", "lint", "bench", "lock", "clean"):
        said = run(f"make --dry-run {target}")
        assert ".venv-common-ai" in said
        assert "airflow-ai-sdk" not in said
    assert "local/common-ai.lock" in run("make --dry-run test")


def test_every_file_it_links_to_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", DOC)
    assert links
    for link in links:
        assert (PROJECT / "docs" / link).exists(), link


@pytest.fixture
def gained(tmp_path: Path) -> Any:
    """The DAG that shows what is gained."""
    (code,) = blocks("python")
    (tmp_path / "gained.py").write_text(code)
    return parse(tmp_path / "gained.py").dags["gained"]


def only(dag: Any, task_id: str) -> Any:
    """The DAG with this task alone, which gets a text of its own."""
    part = dag.partial_subset(task_id, include_upstream=False)
    task = part.get_task(task_id)
    task.op_args = ["Revenue is up."] * len(task.op_args)
    task.op_kwargs = dict.fromkeys(task.op_kwargs, "Revenue is up.")
    task.retries = 2
    return part


@on_common_ai
def test_the_dag_that_shows_what_is_gained_parses(gained):
    assert [task.task_id for task in gained.topological_sort()] == ["summarize", "analyze", "write_letter", "translate"]


@on_common_ai
def test_a_budget_holds_for_all_tries_together(gained, run_any_dag, llm):
    gained.get_task("summarize").output_type = int
    llm.reply("no number", times=None)
    run = run_any_dag(only(gained, "summarize"))

    assert run.state == "failed"
    assert len(chat_requests(llm)) == 3


@on_common_ai
def test_a_durable_agent_pays_for_no_answered_call_twice(gained, run_any_dag, llm):
    llm.call_tool("financial_figures", {"company": "Tretwald"})
    llm.fail(500, times=3)  # ends the first try after one answered call
    llm.reply("It earns money.")
    run = run_any_dag(only(gained, "analyze"))

    assert run.state == "success"
    assert run.task_instance("analyze").try_number == 2
    answered = [request for request in llm.requests if request.status == 200]
    assert len(answered) == 2
    assert run.xcom("analyze") == "It earns money."
