"""`make price`: what a backfill or a file of rows would cost, before anything is asked."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from include.common.storage import storage_path, write_artifact
from include.spend.ledger import Line, Record
from local.price import price_of_file, price_of_runs
from local.processes import StackError
from tests.conftest import chat_requests, dag_file

ROWS = [{"review_id": str(number), "review": f"Review number {number}."} for number in range(20)]


def rows_file(storage: Any, rows: list[dict[str, str]]) -> Any:
    storage.mkdir(exist_ok=True)
    file = storage / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def price(file: Any, batch: str = "b") -> str:
    return price_of_file(
        dag_file("batch_inference_at_scale"),
        "batch_inference_at_scale",
        str(file),
        batch,
        ("review", "review_id"),
    )


@pytest.mark.needs_dags("batch_inference_at_scale")
def test_rows_that_are_answered_cost_nothing_and_the_others_about_as_much(run_dag, llm, storage):
    llm.call_tool("final_result", {"sentiment": "positive", "topic": "app"}, times=None)
    file = rows_file(storage, ROWS)
    before = price(file)
    assert "20 rows, 0 of them need no call, 20 are to be asked" in before
    assert "4 characters a token" in before
    assert "$" in before
    assert chat_requests(llm) == []

    assert run_dag("batch_inference_at_scale", {"input": file.as_uri(), "batch": "b"}).state == "success"
    asked = len(chat_requests(llm))
    assert "20 of them need no call, 0 are to be asked" in price(file)
    assert "0 of them need no call, 20 are to be asked" in price(file, "another batch")
    more = price(rows_file(storage, [*ROWS, {"review_id": "x", "review": ""}, {"review_id": "y", "review": "New."}]))
    assert "22 rows" in more
    assert len(chat_requests(llm)) == asked


@pytest.mark.needs_dags("prompt_chaining")
def test_a_dag_without_rows_is_refused(storage):
    with pytest.raises(StackError, match="'prompt_chaining' has no rows to price"):
        price_of_file(dag_file("prompt_chaining"), "prompt_chaining", "rows.csv", "", ("text", None))


def a_run(run_id: str, cost: float) -> None:
    now = datetime.now(UTC)
    line = Line(kind="chat", conn_id="c", model="m", prompt="p", calls=3, input_tokens=900, output_tokens=100)
    line.cost_usd, line.reused = cost, 1
    where = {"dag_id": "a_dag", "run_id": run_id, "task_id": "t", "map_index": -1, "try_number": 1}
    record = Record(id=run_id, logical_date=None, started=now, updated=now, state="success", lines=[line], **where)
    write_artifact(storage_path(*record.file), record.model_dump_json())


def a_stack(runs: int, *, is_up: bool = True) -> Any:
    api = SimpleNamespace(log_in=lambda: None, backfill_dates=lambda *_: ["2026-11-01"] * runs)
    return SimpleNamespace(attach=lambda: is_up, api=api)


NOVEMBER = (date(2026, 11, 1), date(2026, 11, 30))


def test_runs_that_are_to_come_cost_the_mean_of_those_in_the_ledger(storage):
    a_run("one", 0.5)
    a_run("two", 1.5)
    said = price_of_runs(a_stack(28), "a_dag", *NOVEMBER)

    assert "28 runs from 2026-11-01 to 2026-11-30 are not there yet" in said
    assert "about 84 calls, 28,000 tokens, $28.00" in said
    assert "the 2 runs of the last 30 days, in which 2 calls were answered from the storage" in said


def test_without_a_run_in_the_ledger_the_price_is_not_known(storage):
    assert "What one costs is not known" in price_of_runs(a_stack(28), "a_dag", *NOVEMBER)


def test_without_airflow_nobody_knows_the_runs(storage):
    with pytest.raises(StackError, match="make start"):
        price_of_runs(a_stack(1, is_up=False), "a_dag", *NOVEMBER)
