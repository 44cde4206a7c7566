"""The ledger: a record on storage of what each attempt of a task asked of models, and what that cost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from include.spend import ledger
from include.spend.ledger import Call, Ledger, Line, Record
from include.spend.reading import read_days, roll_up
from tests.conftest import KEY, PROJECT
from tests.stack import wait_until
from tests.storages import on_storage
from tests.test_multi_agent import CONF, FINANCE, SYNTHESIS, plan
from tests.test_prompt_chaining import script

CALL = Call("chat", "pydanticai_default", "gpt-6-luna", "0f0f", input_tokens=7, output_tokens=3, cost_usd=0.5)


def records() -> list[Record]:
    """All records, which must be readable."""
    day = datetime.now(UTC).date()
    found = read_days(date.fromordinal(day.toordinal() - 1), day)
    assert found.unreadable == 0
    by_id: dict[str, Record] = {}
    for row in found.rows.drop_columns("day").to_pylist():
        line = Line(**{name: row.pop(name) for name in Line.model_fields})
        by_id.setdefault(row["id"], Record(**row)).lines.append(line)
    return sorted(by_id.values(), key=lambda record: (record.started, record.id))


def in_task(monkeypatch: pytest.MonkeyPatch, attempt_id: str = "one", **more: Any) -> SimpleNamespace:
    """Have this process work for a task instance."""
    ti = {"id": attempt_id, "dag_id": "a_dag", "run_id": "a run", "task_id": "ask", "map_index": None, "try_number": 1}
    ti = SimpleNamespace(**{**ti, **more})
    monkeypatch.setattr(ledger, "task_context", lambda: {"ti": ti, "logical_date": None})
    return ti


def test_each_task_that_calls_a_model_leaves_what_it_asked_and_what_that_cost(run_dag, llm, storage):
    script(llm)
    run = run_dag("prompt_chaining", {"ticket": "A ticket with a secret word: Zanzibar."})

    found = records()
    assert [record.task_id for record in found] == ["analyze_ticket", "write_reply"]
    for record in found:
        usage = run.xcom(record.task_id, "llm_usage")
        assert (record.dag_id, record.run_id) == ("prompt_chaining", run.run.run_id)
        assert (record.map_index, record.try_number, record.state) == (-1, 1, "success")
        assert record.logical_date == run.run.logical_date
        (line,) = record.lines
        assert (line.kind, line.conn_id, line.model) == ("chat", "pydanticai_default", usage["model"])
        assert (line.calls, line.failed, line.unpriced) == (1, 0, 0)
        assert (line.input_tokens, line.output_tokens) == (usage["input_tokens"], usage["output_tokens"])
        assert line.cost_usd == usage["cost_usd"] > 0
        assert line.seconds > 0
    assert found[0].lines[0].prompt != found[1].lines[0].prompt
    written = "".join(path.read_text() for path in (storage / "ledger").rglob("*.json"))
    assert "Zanzibar" not in written
    assert KEY not in written


def test_the_same_prompt_with_other_data_has_the_same_fingerprint_and_another_prompt_another(run_dag, llm, storage):
    for ticket in ("The first ticket.", "A second, longer ticket."):
        script(llm)
        run_dag("prompt_chaining", {"ticket": ticket})
    prompts = [record.lines[0].prompt for record in records() if record.task_id == "analyze_ticket"]
    assert len(prompts) == 2
    assert len(set(prompts)) == 1


def test_an_agents_calls_are_one_line_of_its_task(run_dag, llm, storage):
    assigned, tool, arguments = FINANCE
    plan(llm, **assigned)
    llm.call_tool(tool, arguments).call_tool(tool, arguments).reply("It earns money.")
    llm.call_tool("final_result", SYNTHESIS)
    run_dag("multi_agent", CONF)

    (agent,) = [record for record in records() if record.task_id == "analyze_finances"]
    (line,) = agent.lines
    assert line.calls == 3
    assert agent.map_index == 0


def test_a_call_that_fails_is_recorded_with_the_attempt(run_dag, llm, storage):
    llm.fail(401, times=None)
    run_dag("prompt_chaining")
    (record,) = records()
    assert record.state == "failed"
    (line,) = record.lines
    assert (line.calls, line.failed, line.unpriced, line.cost_usd) == (1, 1, 0, 0.0)


def test_embeddings_are_counted(run_any_dag, llm, storage):
    from airflow.sdk import dag, task

    @dag(schedule=None)
    def embeds():
        @task
        def embed() -> int:
            from include.ai.embeddings import Embedder

            return len(Embedder().embed_documents(["a text of some words", "another text"]))

        embed()

    assert run_any_dag(embeds()).state == "success"
    (record,) = records()
    (line,) = record.lines
    assert (line.kind, line.conn_id, line.calls) == ("embedding", "embeddings_default", 1)
    assert line.input_tokens > 0
    assert line.cost_usd > 0


@on_storage("disk", "s3")
def test_every_try_and_every_process_of_it_has_a_record_of_its_own(storage, monkeypatch):
    for attempt, number in (("one", 1), ("two", 2), ("two", 2)):
        process = Ledger()
        in_task(monkeypatch, attempt, try_number=number)
        process.record(CALL)
        process.flush()
    assert [(record.try_number, record.lines[0].calls) for record in records()] == [(1, 1), (2, 1), (2, 1)]


def test_a_paid_job_is_one_record_however_often_its_end_is_seen(storage, monkeypatch):
    created = datetime.now(UTC)
    for attempt in ("one", "two"):
        process = Ledger()
        in_task(monkeypatch, attempt)
        process.record_job(CALL._replace(kind="tuning"), "job-1", created)
        process.flush()
    (record,) = records()
    assert record.lines[0].cost_usd == 0.5
    assert record.state == "success"


def test_a_price_that_is_not_known_is_counted_not_guessed(storage, monkeypatch):
    in_task(monkeypatch)
    process = Ledger()
    for cost in (0.25, None, 0.5):
        process.record(CALL._replace(cost_usd=cost))
    process.flush()
    (record,) = records()
    assert (record.lines[0].cost_usd, record.lines[0].unpriced) == (0.75, 1)


def test_a_storage_that_fails_is_named_once_and_what_was_counted_is_written_later(storage, monkeypatch, caplog):
    in_task(monkeypatch)
    process = Ledger()
    write = ledger.write_artifact

    def fail(*_: Any) -> str:
        raise OSError("No space left on device")

    monkeypatch.setattr(ledger, "write_artifact", fail)
    for _ in range(3):
        process.record(CALL)
        process.flush()
    monkeypatch.setattr(ledger, "write_artifact", write)
    process.flush()
    assert caplog.text.count("No space left on device") == 1
    (record,) = records()
    assert record.lines[0].calls == 3


def test_what_a_provider_calls_its_model_cannot_break_a_record(storage, monkeypatch):
    in_task(monkeypatch)
    process = Ledger()
    process.record(CALL._replace(model="\ud800 <script>\n" + "x" * 10_000))
    process.flush()
    (record,) = records()
    assert len(record.lines[0].model) <= 100
    assert "\n" not in record.lines[0].model


def test_records_that_are_broken_are_counted_and_hide_no_other(storage, monkeypatch):
    in_task(monkeypatch)
    process = Ledger()
    process.record(CALL)
    process.flush()
    (file,) = (storage / "ledger").rglob("*.json")
    whole = json.loads(file.read_text())
    (line,) = whole["lines"]
    amounts = [{"cost_usd": 1e999}, {"calls": 10**30}, {"input_tokens": -(10**19)}, {"model": None}]
    broken = [b"", b"{", b"\xff\xfe", b"[]", b'{"id": 1}', json.dumps({**whole, "map_index": 2**70}).encode()]
    broken += [json.dumps({**whole, "lines": [{**line, **amount}]}).encode() for amount in amounts]
    for number, content in enumerate(broken):
        (file.parent / f"{number}.json").write_bytes(content)
    today = datetime.now(UTC).date()
    found = read_days(date.fromordinal(today.toordinal() - 1), today)
    assert found.rows.num_rows == 1
    assert found.unreadable == len(broken)


WORKER = """
import sys
from types import SimpleNamespace
from include.spend import ledger
from include.spend.ledger import Call

ti = SimpleNamespace(id="one", dag_id="a_dag", run_id="r", task_id="ask", map_index=-1, try_number=1)
ledger.task_context = lambda: {"ti": ti, "logical_date": None}
for line in sys.stdin:
    ledger.record(Call("chat", "c", "m", cost_usd=1.0))
"""


@pytest.mark.one_stack
def test_a_killed_process_leaves_what_it_had_spent(storage):
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, text=True, cwd=PROJECT, env=os.environ.copy()
    )
    assert worker.stdin
    try:
        for spent in (1, 2, 3):
            worker.stdin.write("next\n")
            worker.stdin.flush()
            wait_until(lambda spent=spent: [r for r in records() if r.lines[0].calls == spent])
        worker.send_signal(signal.SIGKILL)
    finally:
        worker.kill()
        worker.wait()
    (record,) = records()
    assert (record.state, record.lines[0].cost_usd) == ("unfinished", 3.0)


def test_a_call_waits_for_no_storage(storage, monkeypatch):
    import threading

    in_task(monkeypatch)
    go_on, process = threading.Event(), Ledger()
    write = ledger.write_artifact
    monkeypatch.setattr(ledger, "write_artifact", lambda *given: go_on.wait(300) and write(*given))
    for _ in range(100):
        process.record(CALL)
    assert not go_on.is_set()
    go_on.set()
    wait_until(lambda: [r for r in records() if r.lines[0].calls == 100])


# Rolled up


def test_a_day_becomes_one_parquet_file_and_reads_the_same(storage, monkeypatch):
    for attempt in ("one", "two"):
        process = Ledger()
        in_task(monkeypatch, attempt)
        process.record(CALL)
        process.record(CALL._replace(model="other", cost_usd=None))
        process.end(attempt, "success")
        process.flush()
    before, today = records(), datetime.now(UTC).date()
    for _ in range(2):  # again changes nothing
        roll_up(before[0].started.date())
        assert records() == before
    (file,) = (storage / "ledger" / "days").iterdir()
    assert not list((storage / "ledger").rglob("*.json"))
    assert len(before) == 2
    import pyarrow.parquet as pq

    assert pq.read_table(file).num_rows == 4
    assert today >= before[0].started.date()


def test_a_broken_file_of_a_day_is_counted_and_never_written_over(storage, monkeypatch):
    day = datetime.now(UTC).date()
    file = storage / "ledger" / "days" / f"{day}.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"PAR1 broken")
    process = Ledger()
    in_task(monkeypatch)
    process.record_job(CALL, "job", datetime.now(UTC))
    process.flush()
    found = read_days(day, day)
    assert (found.rows.num_rows, found.unreadable) == (1, 1)
    with pytest.raises(ValueError, match="is not a Parquet file of the ledger"):
        roll_up(day)
    assert file.read_bytes() == b"PAR1 broken"


def test_what_still_runs_is_not_rolled_up_and_nothing_is_counted_twice(storage, monkeypatch):
    process = Ledger()
    in_task(monkeypatch, "ended")
    process.record(CALL)
    process.end("ended", "failed")
    in_task(monkeypatch, "runs")
    process.record(CALL)
    process.flush()
    day = records()[0].started.date()
    roll_up(day)
    assert len(list((storage / "ledger").rglob("*.json"))) == 1
    process.record(CALL)
    process.flush()
    assert sorted(record.lines[0].calls for record in records()) == [1, 2]
    process.end("runs", "success")
    process.flush()
    roll_up(day)
    assert sorted((record.state, record.lines[0].calls) for record in records()) == [("failed", 1), ("success", 2)]


@pytest.mark.needs_dags("spend_report")
def test_the_daily_report_adds_up_the_day_and_updates_the_asset(run_dag, llm, storage):
    script(llm)
    run_dag("prompt_chaining")
    day = records()[0].started.date().isoformat()
    run = run_dag("spend_report", {"day": day})

    assert run.state == "success"
    report = run.xcom("report")
    cost = sum(line.cost_usd for record in records() for line in record.lines)
    assert report["result"] == f"{day}: ${cost:,.2f} for 2 calls"
    (folder,) = (storage / "spend_report").iterdir()
    assert r"| prompt\_chaining |" in (folder / "report.md").read_text()
    assert {path.name for path in folder.iterdir()} == {"report.md", "by_day.svg", "by_dag.svg", "by_model.svg"}


@pytest.mark.one_stack
@pytest.mark.needs_dags("spend_report")
def test_a_job_that_ends_after_its_day_was_reported_is_rolled_up_the_next_day(run_dag, storage, monkeypatch):
    in_task(monkeypatch)
    process, days = Ledger(), [datetime.now(UTC) - timedelta(days=number) for number in (2, 1)]
    for number, started in enumerate(days):
        process.record_job(CALL, f"job {number}", started)
        process.flush()
    run_dag("spend_report", {"day": days[1].date().isoformat()})
    assert {path.stem for path in (storage / "ledger" / "days").iterdir()} == {str(each.date()) for each in days}
    assert not list((storage / "ledger").rglob("*.json"))


@pytest.mark.needs_dags("spend_report")
def test_a_day_without_a_call_is_reported_as_such(run_dag, storage):
    run = run_dag("spend_report", {"day": "2026-01-31"})
    assert run.xcom("report")["result"] == "2026-01-31: $0.00 for 0 calls"
