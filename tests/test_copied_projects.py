"""`make copy`: each DAG is copied into an empty Astro project, and run there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from llmock.scenarios import Match, Reply, ToolCall

from include.messages.contract import EVENT_REQUESTS, REPLIES, STREAM_REQUESTS, new_request
from local.copy.put import copy
from local.kafka_broker import broker_connection
from local.openai_emulator import serve as openai_emulator
from local.sqs_server import sqs_client
from tests.conftest import DATABASE, KEY, PROJECT, dag_files, template_dags
from tests.emulator import Emulator
from tests.kafka import Broker, embedded_broker
from tests.test_copying_a_pattern import astro_project

DAGS = [path.stem for path in dag_files()]

# Every DAG: the conf of its run, the task whose result is looked at, and what that result says. The model's answers are
# made from the schemas that it is asked to fill. Each DAG comes after those that it builds on; the two chains of them
# take about as long.
MODELS_AND_MAPPING: dict[str, tuple[dict[str, Any], str, str]] = {
    "map_expand": ({}, "report", "3 of 3 messages masked"),
    "map_expand_kwargs": ({}, "report", "2 of 2 answers graded, mean grade 0.62"),
    "map_partial_expand": ({}, "report", "2 of 2 documents summarized, such as: "),
    "map_task_group": ({"companies": ["Tretwald"]}, "report", r"Tretwald shrinks \(118.3 to 96.5"),
    "map_chunks": ({"rows": 200, "chunk_size": 100}, "report", r"200 tickets sorted by 2 tasks, \d+% as labelled"),
    "prompt_chaining": ({}, "deliver_reply", "billing / low urgency: mock-message"),
    "routing": ({}, "summarize", "(critical|standard|low): accounts, within"),
    "multi_agent": ({"company": "Tretwald"}, "write_report", "Tretwald: mock-answer"),
    "refund_agent": ({}, "report", "KF-1002: "),
    "batch_inference": ({"limit": 8}, "report", "8 positive, 0 negative, 0 neutral"),
    "batch_inference_at_scale": ({"limit": 20}, "report", "20 rows: 20 answered"),
    "batch_api_inference": ({"limit": 6}, "report", "6 rows: 6 answered, "),
    "fine_tuning": ({"margin": 0, "evaluation_size": 4}, "compare", "score on 4 examples: "),
    "human_review": ({"tickets": ["Where is my van?"]}, "report", r"1 sent \(0 edited\), 0 rejected"),
    "evaluate_prompts": ({}, "report", "no DAG of a subject is in this project"),
    "canary_report": ({}, "compare", "no connection states a canary"),
    "evaluator_optimizer": ({}, "report", r"(not )?passed in"),
    "forget_answers": ({"dag_id": "no_such_dag"}, "delete", "0 stored answers deleted"),
    "price_of_backfill": ({}, "price", "batch_inference_at_scale: .* rows, 0 of them need no call"),
    "spend_report": (
        {"day": datetime.now(UTC).date().isoformat()},
        "report",
        r"\d{4}-\d\d-\d\d: \$[\d.]+ for \d+ calls",
    ),
}
# Copied with layers that they do without.
WITH = {"routing": ["spend"], "prompt_chaining": ["reuse"], "on_demand_inference": ["limits", "fallbacks", "prices"]}
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
# It looks at another DAG's file.
BESIDE = {"price_of_backfill": "batch_inference_at_scale"}
# What a DAG finds only if another one ran before it.
AFTER = {
    "asset_consumer": "asset_producer",
    "asset_or_time": "asset_producer",
    "dead_letters": "stream_inference",
    **BESIDE,
}


def can_run(dag_id: str) -> bool:
    return dag_id in DAGS and AFTER.get(dag_id, dag_id) in DAGS


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
        outcome = ToolCall("final_result", {"summary": "Nothing was done.", "needs_a_person": True})
        llm.add(Reply(tool_calls=(outcome,), times=None, match=Match(model="answers-at-once")))
        broker.send(EVENT_REQUESTS, [message])
        broker.send(STREAM_REQUESTS, [message, b"hello", other])
        for each in (message, b"hello"):
            sqs_client(sqs).send_message(QueueUrl=sqs, MessageBody=each.decode())
        yield broker


def copied_database(to: Path) -> str:
    """The URL of a copy of the session's Airflow database, so that no other test sees these runs and their assets."""
    if DATABASE != "sqlite":
        pytest.skip("the copied projects run on SQLite")
    with (
        contextlib.closing(sqlite3.connect(Path(os.environ["AIRFLOW_HOME"]) / "airflow.db")) as one,
        contextlib.closing(sqlite3.connect(to)) as other,
    ):
        one.backup(other)
    return f"sqlite:///{to}"


def test_each_dag_runs_in_an_empty_project_to_which_it_was_copied(tmp_path, airflow_db, broker, storage):
    assert sorted(dag_id for chain in CHAINS for dag_id in chain) == sorted(template_dags())
    chains = [{dag_id: run for dag_id, run in chain.items() if can_run(dag_id)} for chain in CHAINS]
    runs = {dag_id: run for chain in chains for dag_id, run in chain.items()}
    folders = {dag_id: astro_project(tmp_path / "Größe 1+1 #2 100%20 [x]" / dag_id) for dag_id in runs}
    patterns = {dag_id: copy(dag_id, folder, WITH.get(dag_id, ())).pattern for dag_id, folder in folders.items()}
    for dag_id in BESIDE.keys() & runs.keys():
        copy(BESIDE[dag_id], folders[dag_id])
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
        timeout=1800,
    )

    for dag_id, (_, task_id, says) in runs.items():
        log = (folders[dag_id] / "log").read_text()[-5000:]
        assert (folders[dag_id] / "left.json").exists(), f"{dag_id} did not run:\n{log}"
        left = json.loads((folders[dag_id] / "left.json").read_text())
        assert left["state"] == "success", f"{dag_id}:\n{log}"
        result = left["xcoms"].get(task_id) or {}
        assert re.match(says, result.get("result") or result.get("summary", "")), f"{dag_id}: {result}\n{log}"
    spent = {json.loads(path.read_text())["dag_id"] for path in storage.glob("ledger/attempts/*/*.json")}
    rolled_up = list(storage.glob("ledger/days/*.parquet"))
    assert spent | ({"routing"} if rolled_up else set()) == {"routing"} & runs.keys(), "the others have no ledger"
    replies = {"event_driven_inference": 1, "stream_inference": 2}
    assert len(broker.read(REPLIES)) == sum(replies.get(dag_id, 0) for dag_id in runs)
    state = {"batches", "jobs", "knowledge_base", "ledger", "stored_answers"}
    assert {path.name for path in storage.iterdir()} - state <= runs.keys(), "folders are named as the DAG"


@pytest.mark.one_stack
@pytest.mark.needs_dags("routing", "stream_inference")
def test_the_tests_that_come_along_run_in_the_project_beside_the_ones_of_the_docs(tmp_path):
    project = astro_project(tmp_path / "project")
    for dag_id in ("routing", "stream_inference"):
        copy(dag_id, project)
    page = (PROJECT / "docs" / "testing-your-dags.md").read_text()
    dag, test = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (project / "dags" / "sort_ticket.py").write_text(dag)
    (project / "tests" / "with_scripted_model" / "test_sort_ticket.py").write_text(test)
    # Their own tests have imported Airflow already, with settings of theirs.
    (project / "tests" / "conftest.py").write_text("import airflow.sdk\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"AIRFLOW_CONN_PYDANTICAI_DEFAULT": "{}", "OPENAI_API_KEY": KEY, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "tests"]
    ended = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "4 passed" in ended.stdout
