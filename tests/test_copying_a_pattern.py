"""`make copy`: each DAG is copied into an empty Astro project, and run there."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from include.messages.contract import EVENT_REQUESTS, REPLIES, STREAM_REQUESTS, new_request
from local.copy_pattern import CopyError, analyse, copy, needs, report
from local.kafka_broker import broker_connection
from local.openai_emulator import serve as openai_emulator
from local.sqs_server import sqs_client
from tests.conftest import KEY, PROJECT, dag_files, template_dags
from tests.emulator import Emulator
from tests.kafka import Broker, embedded_broker

pytestmark = pytest.mark.one_stack

DAGS = [path.stem for path in dag_files()]

# Every DAG: the conf of its run, the task whose result is looked at, and what that result says. The model's answers are
# made from the schemas that it is asked to fill. Each DAG comes after those that it builds on; the two chains of them
# take about as long.
MODELS_AND_MAPPING: dict[str, tuple[dict[str, Any], str, str]] = {
    "map_expand": ({}, "report", "3 of 3 messages masked"),
    "map_expand_kwargs": ({}, "report", "2 of 2 answers graded, mean grade 0.62"),
    "map_partial_expand": ({}, "report", "2 of 2 documents summarized, such as: "),
    "map_task_group": ({"companies": ["Tretwald"]}, "report", r"Tretwald shrinks \(118.3 to 96.5"),
    "map_chunks": ({}, "report", r"10000 tickets sorted by 10 tasks, \d+% as labelled"),
    "prompt_chaining": ({}, "deliver_reply", "billing / low urgency: mock-message"),
    "routing": ({}, "summarize", "(critical|standard|low): accounts, within"),
    "multi_agent": ({"company": "Tretwald"}, "write_report", "Tretwald: mock-answer"),
    "batch_inference": ({"limit": 8}, "report", "8 positive, 0 negative, 0 neutral"),
    "batch_inference_at_scale": ({}, "report", "20 rows: 20 answered"),
    "batch_api_inference": ({}, "report", "6 rows: 6 answered, "),
    "fine_tuning": ({"margin": 0}, "compare", "score on 4 examples: "),
    "human_review": ({"tickets": ["Where is my van?"]}, "report", r"1 sent \(0 edited\), 0 rejected"),
}
KNOWLEDGE_AND_EVENTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "rag_pipeline": (
        {"mode": "keyword", "min_score": -1},
        "publish_answer",
        r"mock-answer \[resetting-your-password.md\]",
    ),
    "rag_evaluation": (
        {"min_recall": 0, "answers": 4, "min_grounded": 0},
        "report",
        r"recall@3: .*keyword 0.[89]\d.*; grounded answers: \d of 4",
    ),
    "asset_producer": ({}, "refresh_knowledge_base", r"documents: \d\d added, 0 changed, 0 removed; \d+ chunks"),
    "asset_consumer": ({}, "write_news", r"\d\d changes in 1 update\(s\)"),
    "asset_or_time": ({}, "check_retrieval", r"because of a person: \d+ of \d+ questions find their document"),
    "feedback_intake": ({}, "land_tickets", "40 tickets"),
    "any_asset": ({}, "publish_report", "started by hand: "),
    "all_assets": ({}, "write_digest", r"200 reviews and 40 tickets: \d+ about"),
    "on_demand_inference": ({}, "answer", "mock-summary"),
    "event_driven_inference": ({}, "reply", "1 answered"),
    "stream_inference": ({}, "answer_messages", "2 answered, 0 repeated, 1 dead-lettered"),
    "sqs_inference": ({}, "answer_messages", "1 dead-lettered, 1 answered"),
    "dead_letters": ({}, "count_or_replay", "1 dead letters: 1 x .*Invalid JSON"),
}
CHAINS = [MODELS_AND_MAPPING, KNOWLEDGE_AND_EVENTS]
# What a DAG finds only if another one ran before it.
AFTER = {"asset_consumer": "asset_producer", "asset_or_time": "asset_producer", "dead_letters": "stream_inference"}


def can_run(dag_id: str) -> bool:
    return dag_id in DAGS and AFTER.get(dag_id, dag_id) in DAGS


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return astro_project(tmp_path / "project")


def astro_project(folder: Path) -> Path:
    """An Astro project without a DAG."""
    (folder / "dags").mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM astrocrpublic.azurecr.io/runtime:3.1-17\n")
    (folder / "requirements.txt").write_text("pandas==2.3.3  # of their own\n")
    return folder


@pytest.fixture
def broker(llm: Any, sqs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    """A broker in which messages wait, and all else that a DAG of this project connects to."""
    monkeypatch.setenv("GENAI_SQS_QUEUE", sqs)
    with (
        embedded_broker(tmp_path / "broker") as broker,
        openai_emulator(tmp_path / "emulator", upstream=llm.base_url(), job_seconds=0.3, token=KEY) as url,
    ):
        emulator = Emulator(url, KEY)
        monkeypatch.setenv("AIRFLOW_CONN_OPENAI_DEFAULT", emulator.connection(model="gpt-4o-mini"))
        monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", broker_connection(broker.bootstrap))
        message = new_request("My invoice is wrong.").model_dump_json().encode()
        other = new_request("The app does not start.").model_dump_json().encode()
        broker.send(EVENT_REQUESTS, [message])
        broker.send(STREAM_REQUESTS, [message, b"hello", other])
        for each in (message, b"hello"):
            sqs_client(sqs).send_message(QueueUrl=sqs, MessageBody=each.decode())
        yield broker


def copied_database(to: Path) -> str:
    """The URL of a copy of the session's Airflow database, so that no other test sees these runs and their assets."""
    with (
        closing(sqlite3.connect(Path(os.environ["AIRFLOW_HOME"]) / "airflow.db")) as one,
        closing(sqlite3.connect(to)) as other,
    ):
        one.backup(other)
    return f"sqlite:///{to}"


def test_each_dag_runs_in_an_empty_project_to_which_it_was_copied(tmp_path, airflow_db, broker):
    assert sorted(dag_id for chain in CHAINS for dag_id in chain) == sorted(template_dags())
    chains = [{dag_id: run for dag_id, run in chain.items() if can_run(dag_id)} for chain in CHAINS]
    runs = {dag_id: run for chain in chains for dag_id, run in chain.items()}
    folders = {dag_id: astro_project(tmp_path / "Größe 1+1 #2 100%20 [x]" / dag_id) for dag_id in runs}
    patterns = {dag_id: analyse(dag_id) for dag_id in runs}
    for dag_id, folder in folders.items():
        copy(patterns[dag_id], folder)
    work = [
        [
            copied_database(tmp_path / f"{n}.db"),
            [
                (str(folders[dag_id]), dag_id, conf, patterns[dag_id].connections)
                for dag_id, (conf, _, _) in chain.items()
            ],
        ]
        for n, chain in enumerate(chains)
    ]
    subprocess.run(
        [sys.executable, "-P", "-W", "ignore", str(PROJECT / "tests" / "copied_projects.py"), json.dumps(work)],
        env={**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        check=True,
        timeout=600,
    )

    for dag_id, (_, task_id, says) in runs.items():
        log = (folders[dag_id] / "log").read_text()[-5000:]
        assert (folders[dag_id] / "left.json").exists(), f"{dag_id} did not run:\n{log}"
        left = json.loads((folders[dag_id] / "left.json").read_text())
        assert left["state"] == "success", f"{dag_id}:\n{log}"
        result = left["xcoms"].get(task_id) or {}
        assert re.match(says, result.get("result") or result.get("summary", "")), f"{dag_id}: {result}\n{log}"
    replies = {"event_driven_inference": 1, "stream_inference": 2}
    assert len(broker.read(REPLIES)) == sum(replies.get(dag_id, 0) for dag_id in runs)


@pytest.mark.needs_dags("rag_pipeline", "fine_tuning")
def test_every_module_is_copied_that_might_be_imported_at_run_time():
    modules = {str(path) for path in analyse("rag_pipeline").modules}
    assert {"include/ai/__init__.py", "include/ai/on_common_ai.py", "include/rag/stores/lancedb_store.py"} <= modules
    assert "include/jobs/trigger.py" in {str(path) for path in analyse("fine_tuning").modules}


@pytest.mark.needs_dags("map_expand")
def test_no_more_is_copied_than_what_a_dag_uses():
    pattern = analyse("map_expand")
    assert not any(path.name.startswith("ai") for path in pattern.modules)
    assert pattern.data == []
    assert pattern.connections == []
    assert not pattern.pool


@pytest.mark.needs_dags("rag_pipeline")
def test_the_packages_are_added_and_the_projects_own_stay(project):
    copy(analyse("rag_pipeline"), project)
    lines = (project / "requirements.txt").read_text().splitlines()
    assert lines[0] == "pandas==2.3.3  # of their own"
    assert any(line.startswith("lancedb==") for line in lines)
    assert any(line.startswith("pydantic-ai-slim[openai]==") for line in lines)
    assert not any("kafka" in line for line in lines)
    copy(analyse("rag_pipeline"), project)
    assert (project / "requirements.txt").read_text().splitlines() == lines, "twice is the same as once"


@pytest.mark.needs_dags("rag_pipeline")
def test_another_version_of_a_package_is_kept_and_told(project):
    (project / "requirements.txt").write_text("lancedb==0.1.0")
    pattern = analyse("rag_pipeline")
    said = report(pattern, project, copy(pattern, project))
    assert (project / "requirements.txt").read_text().startswith("lancedb==0.1.0\n")
    assert "it has another version" in said


@pytest.mark.needs_dags("rag_pipeline")
def test_a_file_with_another_content_is_not_overwritten_and_nothing_else_is_copied(project):
    (project / "include").mkdir()
    (project / "include" / "storage.py").write_text("mine = True\n")
    with pytest.raises(CopyError, match=r"include/storage\.py"):
        copy(analyse("rag_pipeline"), project)
    assert (project / "include" / "storage.py").read_text() == "mine = True\n"
    assert list((project / "dags").iterdir()) == []


@pytest.mark.needs_dags("prompt_chaining", "routing")
def test_two_patterns_share_a_project(project):
    for dag_id in ("prompt_chaining", "routing"):
        copy(analyse(dag_id), project)
    assert {path.name for path in (project / "dags").iterdir()} == {"prompt_chaining.py", "routing.py"}


@pytest.mark.needs_dags("rag_pipeline")
def test_what_is_left_to_do_is_said(project):
    pattern = analyse("rag_pipeline")
    said = report(pattern, project, copy(pattern, project))
    for connection in ("PYDANTICAI", "EMBEDDINGS", "VECTOR_STORE"):
        assert f"AIRFLOW_CONN_{connection}_DEFAULT={{" in said
    assert "llm_pool" in said
    assert "DOCUMENTS_PER_TASK" in said
    assert "include/knowledge_base/: sample data" in said


def test_the_docs_say_of_each_dag_what_it_needs():
    page = (PROJECT / "docs" / "copying-a-pattern.md").read_text()
    sections = page.partition("A test holds this list to the code.\n\n")[2]
    listed = {section.split("\n")[0]: f"### {section}" for section in f"\n{sections}".rstrip().split("\n### ")[1:]}
    assert list(listed) == sorted(template_dags())
    for dag_id in DAGS:
        section = needs(analyse(dag_id))
        assert listed[dag_id].rstrip() == section.rstrip(), f"It should say:\n{section}"


@pytest.mark.needs_dags("rag_pipeline")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "make copy PATTERN=rag_pipeline TO="),
        (["PATTERN=nothing", "TO=/nowhere"], "There are: "),
        (["PATTERN=rag_pipeline", "TO=/nowhere"], "astro dev init"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(arguments, said):
    ended = subprocess.run(["make", "copy", *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=600)
    assert ended.returncode != 0
    assert said in ended.stdout + ended.stderr
