"""`make copy`: each DAG, copied into an empty Astro project, is parsed there, and some are run there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from local.copy_pattern import CopyError, analyse, copy, report
from tests.conftest import PROJECT, dag_files
from tests.test_prompt_chaining import script

pytestmark = pytest.mark.one_stack

DAGS = [path.stem for path in dag_files()]

# A child per project, forked when what all share has been imported, which takes most of the time. In each, the
# project's folder alone is where `include` can come from. Arguments: a list of [folder, DAG id, conf or false].
CHILDREN = """
import functools, json, os, runpy, sys, traceback

import airflow.sdk, airflow.providers.standard.operators.hitl, openai, pydantic_ai.models.openai
from airflow.sdk.execution_time import supervisor

try:
    from airflow.dag_processing import dagbag
except ImportError:  # Airflow 3.1
    from airflow.models import dagbag

airflow.sdk.task.llm  # finds all providers
supervisor.in_process_api_server = functools.cache(supervisor.in_process_api_server)

def work(folder, dag_id, conf):
    sys.path.insert(0, folder)
    os.chdir(folder)
    if conf is False:
        runpy.run_path(f"dags/{dag_id}.py")
    else:
        bag = dagbag.DagBag(f"{folder}/dags/{dag_id}.py")
        dagbag.sync_bag_to_db(bag, "dags-folder", None)
        run = bag.dags[dag_id].test(run_conf=conf)
        assert str(run.state) == "success", run.state
    from include import task_defaults
    assert task_defaults.__file__.startswith(folder), task_defaults.__file__

children = {}
for folder, dag_id, conf in json.loads(sys.argv[1]):
    pid = os.fork()
    if pid == 0:
        try:
            work(folder, dag_id, conf)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    children[dag_id] = os.waitpid(pid, 0)[1]
print(json.dumps(children))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return astro_project(tmp_path / "project")


def astro_project(folder: Path) -> Path:
    """An Astro project without a DAG."""
    (folder / "dags").mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM astrocrpublic.azurecr.io/runtime:3.1-17\n")
    (folder / "requirements.txt").write_text("pandas==2.3.3  # of their own\n")
    return folder


def in_children(work: list[tuple[Path, str, Any]]) -> dict[str, int]:
    """The exit status by DAG."""
    argument = json.dumps([(str(folder), dag_id, conf) for folder, dag_id, conf in work])
    environment = {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILDREN, argument],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    children = dict(json.loads(ended.stdout.splitlines()[-1]))
    assert all(status == 0 for status in children.values()), f"{children}\n{ended.stdout[-3000:]}{ended.stderr[-6000:]}"
    return children


def test_each_dag_is_parsed_in_an_empty_project_to_which_it_was_copied_and_some_run_there(
    tmp_path, airflow_db, llm, storage
):
    run = {"prompt_chaining": {"ticket": "Three vans are offline."}, "map_task_group": {"companies": ["Tretwald"]}}
    script(llm)
    work = []
    for dag_id in DAGS:
        folder = astro_project(tmp_path / dag_id)
        copy(analyse(dag_id), folder)
        work.append((folder, dag_id, run.get(dag_id, False)))

    assert in_children(work) == dict.fromkeys(DAGS, 0)
    assert list(storage.glob("outbox/*/reply.json"))


def test_every_module_is_copied_that_might_be_imported_at_run_time():
    modules = {str(path) for path in analyse("rag_pipeline").modules}
    assert {"include/ai.py", "include/ai_common_ai.py", "include/vector_store/lancedb_store.py"} <= modules
    assert "include/triggers/paid_job.py" in {str(path) for path in analyse("fine_tuning").modules}


def test_no_more_is_copied_than_what_a_dag_uses():
    pattern = analyse("map_expand")
    assert not any(path.name.startswith("ai") for path in pattern.modules)
    assert pattern.data == []
    assert pattern.connections == []
    assert not pattern.pool


def test_the_packages_are_added_and_the_projects_own_stay(project):
    copy(analyse("rag_pipeline"), project)
    lines = (project / "requirements.txt").read_text().splitlines()
    assert lines[0] == "pandas==2.3.3  # of their own"
    assert any(line.startswith("lancedb==") for line in lines)
    assert any(line.startswith("pydantic-ai-slim[openai]==") for line in lines)
    assert not any("kafka" in line for line in lines)
    copy(analyse("rag_pipeline"), project)
    assert (project / "requirements.txt").read_text().splitlines() == lines, "twice is the same as once"


def test_another_version_of_a_package_is_kept_and_told(project):
    (project / "requirements.txt").write_text("lancedb==0.1.0")
    pattern = analyse("rag_pipeline")
    said = report(pattern, project, copy(pattern, project))
    assert (project / "requirements.txt").read_text().startswith("lancedb==0.1.0\n")
    assert "it has another version" in said


def test_a_file_with_another_content_is_not_overwritten_and_nothing_else_is_copied(project):
    (project / "include").mkdir()
    (project / "include" / "storage.py").write_text("mine = True\n")
    with pytest.raises(CopyError, match=r"include/storage\.py"):
        copy(analyse("rag_pipeline"), project)
    assert (project / "include" / "storage.py").read_text() == "mine = True\n"
    assert list((project / "dags").iterdir()) == []


def test_two_patterns_share_a_project(project):
    for dag_id in ("prompt_chaining", "routing"):
        copy(analyse(dag_id), project)
    assert {path.name for path in (project / "dags").iterdir()} == {"prompt_chaining.py", "routing.py"}


def test_what_is_left_to_do_is_said(project):
    pattern = analyse("rag_pipeline")
    said = report(pattern, project, copy(pattern, project))
    for connection in ("PYDANTICAI", "EMBEDDINGS", "VECTOR_STORE"):
        assert f"AIRFLOW_CONN_{connection}_DEFAULT={{" in said
    assert "llm_pool" in said
    assert "DOCUMENTS_PER_TASK" in said
    assert "include/knowledge_base/: sample data" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "make copy PATTERN=rag_pipeline TO="),
        (["PATTERN=nothing", "TO=/nowhere"], "There are: "),
        (["PATTERN=rag_pipeline", "TO=/nowhere"], "astro dev init"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(arguments, said):
    ended = subprocess.run(["make", "copy", *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert said in ended.stdout + ended.stderr
