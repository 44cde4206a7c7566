"""A canary: a share of a DAG's runs asks a candidate connection, and both arms are compared."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import dag, task
from pydantic_ai import Agent

from include.ai import canary as layer
from include.ai import llm_kwargs, untrusted
from include.ai.canary import Canary
from include.ai.model import connection_model
from include.common.storage import storage_path, write_artifact
from include.evaluation.canary import Arm, difference_of_shares, verdict
from include.spend.ledger import Line, Record
from include.spend.scores import Score
from tests.conftest import chat_requests
from tests.test_fallbacks import connection

USUAL, CANDIDATE = "usual_model", "candidate_model"


@pytest.fixture
def models(llm: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripted server behind a connection and its candidate, which a tenth of the runs asks."""
    extra = {"canary": {"conn_id": CANDIDATE, "share": 0.1}}
    monkeypatch.setenv(f"AIRFLOW_CONN_{USUAL.upper()}", connection(llm.base_url(), "usual", **extra))
    monkeypatch.setenv(f"AIRFLOW_CONN_{CANDIDATE.upper()}", connection(llm.base_url(), "candidate"))
    return llm


def in_run(monkeypatch: pytest.MonkeyPatch, run_id: str) -> None:
    """Have this process work for a run, to the canary alone."""
    context = {"ti": SimpleNamespace(dag_id="a_dag", run_id=run_id)}
    monkeypatch.setattr(layer, "task_context", lambda: context)


def run_of(arm: str, share: float = 0.1) -> str:
    """The id of a run that is in this arm."""
    canary = Canary(conn_id=CANDIDATE, share=share)
    wanted = arm == "candidate"
    return next(run for n in range(1000) if canary.takes(USUAL, "a_dag", run := f"run {n}") is wanted)


def ask() -> str:
    return Agent(connection_model(USUAL)).run_sync("How are you?").output


def asked(llm: Any) -> list[str]:
    return [request["model"] for request in chat_requests(llm)]


# Who is asked


@pytest.mark.one_stack
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_of_many_runs_the_candidate_gets_its_share(share):
    runs = [
        f"scheduled__{datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=n):%Y-%m-%dT%H:%M:%S}" for n in range(10**4)
    ]
    canary = Canary(conn_id=CANDIDATE, share=share)
    taken = {run for run in runs if canary.takes(USUAL, "a_dag", run)}

    assert len(taken) / len(runs) == pytest.approx(share, abs=4 * (share * (1 - share) / len(runs)) ** 0.5)
    larger = Canary(conn_id=CANDIDATE, share=2 * share)
    assert taken <= {run for run in runs if larger.takes(USUAL, "a_dag", run)}, "a larger share keeps the runs"
    assert taken != {run for run in runs if canary.takes(USUAL, "another_dag", run)}


@pytest.mark.one_stack
def test_shares_of_none_and_all_are_exact():
    assert not any(Canary(conn_id=CANDIDATE, share=0).takes(USUAL, "a_dag", str(n)) for n in range(1000))
    assert all(Canary(conn_id=CANDIDATE, share=1).takes(USUAL, "a_dag", str(n)) for n in range(1000))


def test_the_arm_of_a_run_is_the_same_in_every_process():
    assert [run_of(arm) for arm in ("usual", "candidate")] == ["run 0", "run 5"]


@pytest.mark.parametrize("arm", ["usual", "candidate"])
def test_all_calls_of_a_run_ask_the_connection_of_its_arm(models, monkeypatch, arm):
    in_run(monkeypatch, run_of(arm))
    models.reply("Well.").reply("Well.")

    assert [ask(), ask()] == ["Well.", "Well."]
    assert asked(models) == [arm, arm]


def test_one_model_serves_runs_of_both_arms(models, monkeypatch):
    agent = Agent(connection_model(USUAL))
    for arm in ("usual", "candidate", "usual"):
        in_run(monkeypatch, run_of(arm))
        models.reply("Well.")
        agent.run_sync("How are you?")

    assert asked(models) == ["usual", "candidate", "usual"]


def test_outside_a_run_the_candidate_is_not_asked(models):
    models.reply("Well.")

    assert ask() == "Well."
    assert asked(models) == ["usual"]


def test_where_the_candidate_gives_no_answer_the_connection_itself_is_asked_and_then_its_fallbacks(
    models, monkeypatch, logged
):
    extra = {"canary": {"conn_id": CANDIDATE, "share": 1}, "fallback_conn_ids": ["third", CANDIDATE]}
    monkeypatch.setenv(f"AIRFLOW_CONN_{USUAL.upper()}", connection(models.base_url(), "usual", **extra))
    monkeypatch.setenv("AIRFLOW_CONN_THIRD", connection(models.base_url(), "third"))
    in_run(monkeypatch, "any run")
    models.fail(401).fail(401).reply("Well.")

    assert ask() == "Well."
    assert asked(models) == ["candidate", "usual", "third"]
    assert f"No answer. Connection '{CANDIDATE}': " in logged()


# What the extra may hold


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (CANDIDATE, "canary: "),
        ({"share": 0.1}, "canary.conn_id: "),
        ({"conn_id": "", "share": 0.1}, "canary.conn_id: "),
        ({"conn_id": USUAL, "share": 0.1}, "canary.conn_id: it must be another connection"),
        ({"conn_id": CANDIDATE}, "canary.share: "),
        ({"conn_id": CANDIDATE, "share": 10}, "canary.share: "),
        ({"conn_id": CANDIDATE, "share": "0.1"}, "canary.share: "),
        ({"conn_id": CANDIDATE, "share": True}, "canary.share: "),
        ({"conn_id": CANDIDATE, "share": 0.1, "percent": 10}, "canary.percent: "),
    ],
    ids=str,
)
def test_a_canary_that_is_none_is_an_error_before_anything_is_asked(models, monkeypatch, wrong, says):
    monkeypatch.setenv(f"AIRFLOW_CONN_{USUAL.upper()}", connection(models.base_url(), "usual", canary=wrong))

    with pytest.raises(AirflowFailException, match=f"Connection '{USUAL}', extra: {says}"):
        ask()
    assert asked(models) == []


def test_a_candidate_that_describes_no_model_is_an_error_that_names_it(models, monkeypatch):
    monkeypatch.setenv(f"AIRFLOW_CONN_{CANDIDATE.upper()}", '{"conn_type": "pydanticai"}')
    in_run(monkeypatch, run_of("candidate"))

    with pytest.raises(AirflowFailException, match=f"Connection '{CANDIDATE}': set its extra"):
        ask()
    assert asked(models) == []


# In tasks, on either SDK


def example_dag() -> Any:
    @dag("a_dag", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC))
    def two_tasks():
        @task.llm(**llm_kwargs(USUAL), system_prompt="Answer.")
        def first():
            return untrusted("How are you?")

        @task.llm(**llm_kwargs(USUAL), system_prompt="Answer.")
        def second(before):
            return untrusted("And now?")

        second(first())

    return two_tasks()


def test_the_tasks_of_a_run_and_their_retries_ask_the_candidate_and_the_ledger_says_so(
    run_any_dag, models, storage, monkeypatch
):
    extra = {"canary": {"conn_id": CANDIDATE, "share": 1}}
    monkeypatch.setenv(f"AIRFLOW_CONN_{USUAL.upper()}", connection(models.base_url(), "usual", **extra))
    monkeypatch.setattr("include.ai.repeats.PAUSES_S", ())
    models.fail(500, times=2).reply("Well.").reply("Better.")
    run = run_any_dag(example_dag())

    assert run.state == "success"
    assert asked(models) == ["candidate", "usual", "candidate", "candidate"]
    assert run.task_instance("first").try_number == 2
    records = [json.loads(path.read_text()) for path in storage.glob("ledger/attempts/*/*.json")]
    assert {line["conn_id"] for record in records for line in record["lines"] if not line["failed"]} == {CANDIDATE}


# The report


@pytest.mark.one_stack
def test_the_verdict_is_as_sure_as_the_number_of_runs_allows():
    def said(usual: tuple[int, int], candidate: tuple[int, int]) -> str:
        return verdict(*(Arm(runs=runs, failed_runs=failed) for failed, runs in (usual, candidate)))

    assert said((0, 20), (0, 0)) == "nothing to compare with"
    assert said((0, 20), (0, 4)) == "too few runs to tell"
    assert said((5, 500), (1, 100)) == "no significant difference in failures"
    assert said((5, 500), (20, 100)) == "more failures"
    assert said((100, 500), (2, 100)) == "fewer failures"
    # Newcombe (1998), table II, example (a), method 10: 56/70 and 48/80.
    assert difference_of_shares(48, 80, 56, 70) == pytest.approx((0.2, 0.0524, 0.3339), abs=0.0001)


def record(run: str, conn_id: str, at: datetime, **line: Any) -> None:
    of_run = {"dag_id": "a_dag", "run_id": run, "task_id": "ask", "map_index": -1, "try_number": 1}
    given = {"kind": "chat", "conn_id": conn_id, "model": "m", "prompt": "p", "calls": 1, "seconds": 0.5, **line}
    state = "failed" if line.get("failed") else "success"
    made = Record(
        id=f"{run}-{conn_id}", logical_date=None, started=at, updated=at, state=state, lines=[Line(**given)], **of_run
    )
    write_artifact(storage_path(*made.file), made.model_dump_json())


@pytest.mark.needs_dags("canary_report")
def test_the_report_compares_the_runs_of_both_arms_since_the_canary_began(run_dag, storage, models):
    now = datetime.now(UTC)
    canary = Canary(conn_id=CANDIDATE, share=0.1)
    runs = [f"run {n}" for n in range(300)]
    taken = [run for run in runs if canary.takes(USUAL, "a_dag", run)]
    others = [run for run in runs if run not in taken]
    for run in others[:200]:
        record(run, USUAL, now, cost_usd=0.02)
    for number, run in enumerate(taken[:20]):  # the first ones fail, and fall back
        record(run, CANDIDATE, now, cost_usd=0.01, failed=int(number < 10))
    record(taken[0], USUAL, now, cost_usd=0.02)
    record("before", USUAL, now - timedelta(days=1), cost_usd=9)
    record(others[-1], CANDIDATE, now, cost_usd=9)  # asked by something else
    record("other models", "no_such_connection", now, cost_usd=9)
    day = now.date().isoformat()
    for run, value in ((others[0], 0.8), (taken[1], 0.9)):
        score = Score(
            dag_id="a_dag",
            run_id=run,
            at=now,
            subject="s",
            metric="m",
            value=value,
            cases=50,
            model="m",
            fingerprint="f",
        )
        write_artifact(storage_path("scores", "a_dag", f"{day}~{run}.json"), score.model_dump_json())
    run = run_dag("canary_report")

    found = run.xcom("compare")
    assert found["result"] == f"{CANDIDATE} instead of {USUAL}: a_dag: more failures"
    report = (Path(found["artifacts"].removeprefix("file://")) / "report.md").read_text()
    assert "| usual | 200 | 0 % [0, 2] | 200 | 0 | $0.02 | 0.50 |  |" in report.replace("\\", "")
    assert "| candidate | 20 | 50 % [30, 70] | 21 | 10 | $0.011 | 0.50 | more failures |" in report.replace("\\", "")
    assert "1 runs are in neither arm" in report
    assert "| 80 % [67, 89] of 50 | 90 % [79, 96] of 50 |" in report
