"""Runs each DAG that was copied to this project, with its default params and the scripted model of conftest.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
MANIFEST = PROJECT / ".copied-patterns.json"
# These need more than a model, which a test of yours has to provide: here, their files are only imported.
NEED_A_SERVICE = {
    "batch_api_inference": "a provider's Batch API",
    "dead_letters": "Kafka",
    "event_driven_inference": "Kafka",
    "fine_tuning": "a provider's fine-tuning",
    "sqs_inference": "Amazon SQS",
    "stream_inference": "Kafka",
}

copied = json.loads(MANIFEST.read_text())["files"] if MANIFEST.exists() else {}
DAGS = [file for file in copied if file.startswith("dags/") and (PROJECT / file).exists()]


@pytest.mark.parametrize("file", DAGS)
def test_a_copied_dag_runs(file, run_dag):
    if Path(file).stem in NEED_A_SERVICE:
        run_dag(file, run=False)
    else:
        run = run_dag(file)
        assert run.state == "success", run.log
        assert "failed" not in run.states.values(), run.log
