"""Budgets: a call that would be paid beyond them is not made."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from include.common.shared_total import KEPT_ENTRIES, MOST_ENTRIES, PARTS, SharedTotal
from include.spend import budgets as module
from include.spend.budgets import Budgets, Meter
from tests.conftest import KEY, PROJECT, model_connection
from tests.storages import on_storage
from tests.test_prompt_chaining import script

ONE_CALL = {"day_usd": 1e-6}


@pytest.fixture
def budgets(llm: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give the connection these budgets."""

    def give(model: str = "openai-chat:gpt-6-luna", **given: Any) -> None:
        connection = json.loads(model_connection(llm.env()["OPENAI_BASE_URL"], model))
        connection["extra"]["budgets"] = given
        monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", json.dumps(connection))

    return give


@pytest.mark.parametrize("period", ["day_usd", "month_usd"])
def test_when_a_budget_is_used_up_the_next_run_makes_no_call_and_says_what_to_do(
    budgets, run_dag, llm, storage, logged, period
):
    budgets(**{period: 1.0})
    script(llm)
    assert run_dag("prompt_chaining").state == "success"
    asked = len(llm.requests)
    budgets(**{period: 1e-6})
    run = run_dag("prompt_chaining")
    assert run.states()["analyze_ticket"] == "failed"
    assert len(llm.requests) == asked
    said = logged()
    assert f"its budget for the {period.removesuffix('_usd')} {datetime.now(UTC).year}-" in said
    assert f"Wait for the next one, or raise {period} in the budgets" in said
    assert KEY not in said


def test_a_budget_of_one_cent_stops_the_second_run_before_its_first_call(run_dag, llm, storage, monkeypatch, logged):
    def price(usd: float, **extra: Any) -> None:
        connection = json.loads(model_connection(llm.env()["OPENAI_BASE_URL"], "openai-chat:our-own-model"))
        connection["extra"] |= {"usd_per_million_tokens": {"input": usd, "output": usd}, **extra}
        monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", json.dumps(connection))

    price(1.0)
    script(llm)
    usage = run_dag("prompt_chaining").xcom("analyze_ticket", "llm_usage")
    llm.reset()
    tokens = usage["input_tokens"] + usage["output_tokens"]

    price(0.009 / tokens * 1e6, budgets={"day_usd": 0.01})  # one call is within it, two are not
    script(llm)
    assert run_dag("prompt_chaining").state == "success"
    llm.reset()
    second = run_dag("prompt_chaining")
    assert second.states()["analyze_ticket"] == "failed"
    assert llm.requests == []
    assert "of $0.01 are spent. Wait for the next one, or raise day_usd in the budgets of the connection" in logged()


def test_a_runs_budget_is_that_of_all_its_tasks_and_of_no_other_run(budgets, run_dag, llm, storage):
    budgets(run_usd=1e-6)
    for _ in range(2):
        script(llm)
        run = run_dag("prompt_chaining")
        assert run.states()["analyze_ticket"] == "success"
        assert run.states()["write_reply"] == "failed"
        llm.reset()


def test_a_tasks_budget_stops_an_agent_between_two_calls(llm, run_any_dag, storage, logged):
    from airflow.sdk import dag, task

    from include.ai.agents import agent_kwargs

    def look() -> str:
        """Look at something."""
        return "seen"

    @dag(schedule=None)
    def agents():
        @task.agent(**agent_kwargs(system_prompt="Look.", tools=[look], budget_usd=1e-9))
        def agent() -> str:
            return "Go."

        agent()

    llm.call_tool("look", {}, times=None)
    module.FRESH_S, fresh = 0.0, module.FRESH_S
    try:
        assert run_any_dag(agents()).state == "failed"
    finally:
        module.FRESH_S = fresh
    assert len(llm.requests) == 1
    assert "its budget for the task agent is used up" in logged()


@pytest.mark.parametrize("amount", [0, -1])
def test_a_tasks_budget_that_is_no_amount_is_refused_in_the_dag_file(amount):
    from include.ai.model import connection_model

    with pytest.raises(ValueError, match="budget_usd"):
        connection_model("any", budget_usd=amount)


def test_a_model_whose_price_nobody_knows_is_refused_before_the_first_call(budgets, run_dag, llm, storage, logged):
    budgets("openai-chat:our-own-model", day_usd=5)
    run_dag("prompt_chaining")
    assert llm.requests == []
    assert "the price of 'our-own-model' is not known" in logged()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"day_usd": 0}, "budgets.day_usd"),
        ({"day_usd": "many"}, "budgets.day_usd"),
        ({"week_usd": 5}, "budgets.week_usd"),
        ({"day_usd": float("inf")}, "budgets.day_usd"),
        ({"warn_at": -1}, "budgets.warn_at"),
    ],
)
def test_budgets_that_make_no_sense_are_named(given, named):
    with pytest.raises(AirflowFailException, match=f"Connection 'x', extra: {named}"):
        module.read_budgets("x", {"budgets": given})


def test_the_log_warns_once_when_the_budget_is_nearly_used_up(storage, monkeypatch, caplog):
    monkeypatch.setattr(module, "task_context", lambda: None)
    meter = Meter("conn", Budgets(day_usd=10, warn_at=0.5), None)
    meter.add(4.0, "m")
    meter.check()
    assert "are spent" not in caplog.text
    meter.add(2.0, "m")
    meter.check()
    meter.check()
    assert caplog.text.count("$6.00 of $10.00 are spent") == 1


def spend(meter: Meter, usd: float) -> int:
    """Call until the budget is used up; return the number of calls."""
    calls = 0
    while True:
        try:
            meter.check()
        except AirflowFailException:
            return calls
        meter.add(usd, "m")
        meter.save()
        calls += 1


def test_many_tasks_at_once_overspend_by_no_more_than_their_calls_in_flight(storage, monkeypatch):
    monkeypatch.setattr(module, "task_context", lambda: None)
    tasks, usd, limit = 40, 0.01, 1.0
    with ThreadPoolExecutor(tasks) as pool:
        calls = sum(pool.map(lambda _: spend(Meter("conn", Budgets(day_usd=limit), None), usd), range(tasks)))
    assert limit <= round(calls * usd, 6) <= limit + tasks * usd
    total = SharedTotal((module.FOLDER, "conn", datetime.now(UTC).date().isoformat()))
    assert total.read() == pytest.approx(calls * usd)


def test_what_could_not_be_added_is_added_later_and_once(storage, monkeypatch):
    monkeypatch.setattr(module, "task_context", lambda: None)
    meter = Meter("conn", Budgets(day_usd=10, month_usd=10), None)
    add, failing = SharedTotal.add, [False, True]

    def sometimes(self: SharedTotal, amount: float) -> None:
        if failing and failing.pop(0):
            raise OSError("No space left on device")
        add(self, amount)

    monkeypatch.setattr(SharedTotal, "add", sometimes)
    meter.add(1.0, "m")
    with pytest.raises(OSError, match="No space"):
        meter.save()
    meter.save()
    now = datetime.now(UTC).date().isoformat()
    assert [SharedTotal((module.FOLDER, "conn", period)).read() for period in (now, now[:7])] == [1.0, 1.0]


# The sum itself


@pytest.mark.one_stack
@on_storage("disk", "s3", "memory")
def test_a_sum_holds_what_many_add_at_the_same_moment(storage):
    total, barrier = SharedTotal(("sums", "one")), Barrier(6)

    def add(number: int) -> None:
        barrier.wait()
        for _ in range(8):
            total.add(0.5)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(6)))
    assert total.read() == 6 * 8 * 0.5
    assert SharedTotal(("sums", "another")).read() == 0


@pytest.mark.one_stack
def test_a_sum_stays_a_handful_of_files_however_often_it_is_added_to(storage):
    total = SharedTotal(("sums", "one"))
    for _ in range(PARTS * MOST_ENTRIES * 3):
        total.add(1.0)
    assert total.read() == PARTS * MOST_ENTRIES * 3
    assert len(list((storage / "sums" / "one").iterdir())) <= PARTS * (MOST_ENTRIES + 2)
    assert KEPT_ENTRIES < MOST_ENTRIES


ADD_FOREVER = """
from include.common.shared_total import SharedTotal
while True:
    SharedTotal(("sums", "one")).add(1.0)
    print(flush=True)
"""


@pytest.mark.one_stack
def test_a_process_that_is_killed_while_it_adds_breaks_no_sum(storage):
    for _ in range(3):
        worker = subprocess.Popen([sys.executable, "-c", ADD_FOREVER], stdout=subprocess.PIPE, cwd=PROJECT)
        assert worker.stdout
        worker.stdout.readline()
        worker.kill()
        worker.wait()
    total = SharedTotal(("sums", "one"))
    before = total.read()
    assert before >= 3
    total.add(1.0)
    assert total.read() == before + 1


def test_an_empty_entry_as_a_machine_that_went_down_leaves_it_breaks_nothing(storage):
    total = SharedTotal(("sums", "one"))
    total.add(2.0)
    (entry,) = (storage / "sums" / "one").iterdir()
    (entry.parent / f"{entry.name.split('-')[0]}-000000009").write_bytes(b"")
    assert total.read() == 0.0
    total.add(1.0)
    assert total.read() == 1.0
