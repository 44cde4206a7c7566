"""`make price` and the DAG `price_of_backfill`: what a backfill or rows would cost, before anything is asked."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from include.common.storage import storage_path, write_artifact
from include.spend.ledger import Line, Record
from include.spend.price import backfill_dates
from local.price import price_of_dates, price_of_file
from local.processes import StackError
from tests.conftest import chat_requests, dag_file

ROWS = [{"review_id": str(number), "review": f"Review number {number}."} for number in range(20)]


def rows_file(storage: Any, rows: list[dict[str, str]]) -> Any:
    storage.mkdir(exist_ok=True)
    file = storage / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def price(file: Any, batch: str = "b") -> str:
    return price_of_file(dag_file("batch_inference_at_scale"), str(file), batch, ("review", "review_id"))


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
    with pytest.raises(AirflowFailException, match="'prompt_chaining' has no rows to price"):
        price_of_file(dag_file("prompt_chaining"), "rows.csv", "", ("text", None))


def a_run(run_id: str, cost: float, dag_id: str = "a_dag") -> None:
    now = datetime.now(UTC)
    line = Line(kind="chat", conn_id="c", model="m", prompt="p", calls=3, input_tokens=900, output_tokens=100)
    line.cost_usd, line.reused = cost, 1
    where = {"dag_id": dag_id, "run_id": run_id, "task_id": "t", "map_index": -1, "try_number": 1}
    record = Record(id=run_id, logical_date=None, started=now, updated=now, state="success", lines=[line], **where)
    write_artifact(storage_path(*record.file), record.model_dump_json())


def a_stack(runs: int, *, is_up: bool = True) -> Any:
    api = SimpleNamespace(log_in=lambda: None, backfill_dates=lambda *_: ["2026-11-01"] * runs)
    return SimpleNamespace(attach=lambda: is_up, api=api)


NOVEMBER = (date(2026, 11, 1), date(2026, 11, 30))


def test_runs_that_are_to_come_cost_the_mean_of_those_in_the_ledger(storage):
    a_run("one", 0.5)
    a_run("two", 1.5)
    said = price_of_dates(a_stack(28), "a_dag", *NOVEMBER)

    assert "28 runs from 2026-11-01 to 2026-11-30 do not exist yet" in said
    assert "about 84 calls, 28,000 tokens, $28.00" in said
    assert "the 2 runs of the last 30 days, in which 2 calls were answered from the storage" in said


def test_without_a_run_in_the_ledger_the_price_is_not_known(storage):
    assert "What one costs is not known" in price_of_dates(a_stack(28), "a_dag", *NOVEMBER)


def test_without_airflow_nobody_knows_the_runs(storage):
    with pytest.raises(StackError, match="make start"):
        price_of_dates(a_stack(1, is_up=False), "a_dag", *NOVEMBER)


DAY = {"dag_id": "spend_report", "first": "2025-01-01", "last": "2025-01-30"}


@pytest.mark.needs_dags("price_of_backfill", "spend_report")
def test_the_dag_counts_the_runs_that_are_not_there_and_reports_their_price(run_dag, storage):
    a_run("one", 0.5, dag_id="spend_report")
    before = run_dag("price_of_backfill", DAY)
    said = before.xcom("price")["result"]
    assert "30 runs from 2025-01-01 to 2025-01-30 do not exist yet" in said
    assert "90 calls, 30,000 tokens, $15.00" in said
    (report,) = storage.rglob("report.md")
    assert "Price of spend\\_report" in report.read_text()

    for day in (3, 4):
        run_dag("spend_report", logical_date=datetime(2025, 1, day, tzinfo=UTC))
    assert "28 runs from" in run_dag("price_of_backfill", DAY).xcom("price")["result"]


@pytest.mark.needs_dags("price_of_backfill", "batch_inference_at_scale")
def test_the_dag_prices_the_rows_that_a_batch_has_not_answered_and_asks_nothing(run_dag, llm, storage):
    llm.call_tool("final_result", {"sentiment": "positive", "topic": "app"}, times=None)
    conf = {"input": rows_file(storage, ROWS).as_uri(), "batch": "b"}
    assert "20 rows, 0 of them need no call" in run_dag("price_of_backfill", conf).xcom("price")["result"]
    assert chat_requests(llm) == []
    assert run_dag("batch_inference_at_scale", conf).state == "success"
    asked = len(chat_requests(llm))
    assert "20 of them need no call, 0 are to be asked" in run_dag("price_of_backfill", conf).xcom("price")["result"]
    assert len(chat_requests(llm)) == asked


@pytest.mark.parametrize("dag_id", ["no_such_dag", "*", "../operations/spend_report", "", "../../local/price"])
def test_a_dag_that_there_is_not_is_refused_by_its_name(dag_id):
    with pytest.raises(AirflowFailException, match=f"There is no file {re.escape(dag_id)}.py below"):
        backfill_dates(dag_id, *NOVEMBER)


@pytest.mark.needs_dags("prompt_chaining", "spend_report")
def test_a_dag_without_dates_and_days_in_the_wrong_order_are_refused():
    with pytest.raises(AirflowFailException, match="'prompt_chaining' cannot be backfilled"):
        backfill_dates("prompt_chaining", *NOVEMBER)
    with pytest.raises(AirflowFailException, match="2026-11-30, is after the last, 2026-11-01"):
        backfill_dates("spend_report", *reversed(NOVEMBER))


@pytest.mark.needs_dags("asset_producer")
def test_so_many_runs_that_nobody_means_them_are_refused():
    with pytest.raises(AirflowFailException, match="more than 10000 runs"):
        backfill_dates("asset_producer", date(2020, 1, 1), date(2022, 1, 1))
