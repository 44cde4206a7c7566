"""Scores that evaluations record, and the page GenAI plots."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from include.spend import scores
from include.spend.scores import read_scores, record_score
from tests.storages import on_storage

DAY = date(2026, 11, 26)
GIVEN: dict[str, Any] = {"cases": 60, "model": "gpt-6-luna", "fingerprint": "0f0f"}


def in_run(
    monkeypatch: pytest.MonkeyPatch, run_id: str = "a run", dag_id: str = "an_evaluation", day: int = 26
) -> None:
    """Have this process work for a run."""
    run = SimpleNamespace(run_after=datetime(2026, 11, day, 12, tzinfo=UTC))
    context = {"ti": SimpleNamespace(dag_id=dag_id, run_id=run_id), "dag_run": run}
    monkeypatch.setattr(scores, "task_context", lambda: context)


@on_storage("disk", "s3")
def test_a_score_is_read_again_as_it_was_recorded_and_a_retry_records_it_once(storage, monkeypatch):
    in_run(monkeypatch)
    for _ in range(2):
        record_score("answers", "grounded", 0.9, low=0.8, high=0.95, **GIVEN)
    record_score("answers", "grounded", 0.7, **{**GIVEN, "model": "another"})
    found = read_scores(DAY, DAY, {"an_evaluation"})
    assert found.unreadable == 0
    assert {(each.value, each.low, each.high, each.model) for each in found.scores} == {
        (0.9, 0.8, 0.95, "gpt-6-luna"),
        (0.7, None, None, "another"),
    }
    assert {(each.run_id, each.cases, each.fingerprint) for each in found.scores} == {("a run", 60, "0f0f")}


def test_scores_are_those_of_the_days_and_the_dags_that_were_asked_for_the_oldest_first(storage, monkeypatch):
    assert read_scores(DAY, DAY, {"an_evaluation"}).scores == []
    for day in (26, 25, 24):
        in_run(monkeypatch, f"run {day}", day=day)
        record_score("answers", "grounded", day / 100, **GIVEN)
    in_run(monkeypatch, dag_id="../another", day=26)
    record_score("answers", "grounded", 0.5, **GIVEN)
    first = date(2026, 11, 25)
    assert [each.value for each in read_scores(first, DAY, {"an_evaluation"}).scores] == [0.25, 0.26]
    assert [each.value for each in read_scores(first, DAY, {"../another"}).scores] == [0.5]


def test_a_broken_score_is_counted_and_hides_no_other(storage, monkeypatch):
    in_run(monkeypatch)
    record_score("answers", "grounded", 0.9, **GIVEN)
    (file,) = (storage / "scores").rglob("*.json")
    (file.parent / "2026-11-26~x.json").write_text("{")
    (file.parent / "2026-11-26~y.json").write_text(json.dumps({**json.loads(file.read_text()), "value": 1e999}))
    found = read_scores(DAY, DAY, {"an_evaluation"})
    assert (len(found.scores), found.unreadable) == (1, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_a_number_is_refused(storage, monkeypatch, value):
    in_run(monkeypatch)
    with pytest.raises(ValueError, match="finite number"):
        record_score("answers", "grounded", value, **GIVEN)


def test_outside_a_task_nothing_is_recorded(storage):
    record_score("answers", "grounded", 0.9, **GIVEN)
    assert not (storage / "scores").exists()
