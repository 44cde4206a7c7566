"""Budgets hold for paid jobs, too: fine-tuning and batches at the provider."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from include.common.shared_total import SharedTotal
from include.spend import budgets as module
from tests.conftest import KEY
from tests.emulator import Emulator
from tests.storages import on_storage
from tests.test_fine_tune_operator import Task, file_id, jobs_of, provider, server, task  # noqa: F401 (fixtures)

TOKENS_USD = 3.0


@pytest.fixture
def budgets(server: Emulator, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:  # noqa: F811
    """Give the connection these budgets."""

    def give(price: float | None = TOKENS_USD, **given: Any) -> None:
        connection = json.loads(server.connection())
        connection["extra"] |= {"budgets": given, "training_usd_per_million_tokens": price}
        monkeypatch.setenv("AIRFLOW_CONN_OPENAI_DEFAULT", json.dumps(connection))

    return give


def spent(conn_id: str = "openai_default") -> float:
    return SharedTotal((module.FOLDER, conn_id, datetime.now(UTC).date().isoformat())).read()


def test_a_job_counts_once_with_what_it_cost_and_the_next_is_refused_before_it_is_created(task, provider, budgets):  # noqa: F811
    budgets(day_usd=1000)
    first = task()
    first.attempt()
    cost = first.xcoms["cost_usd"]
    assert spent() == pytest.approx(cost)
    first.attempt()
    assert spent() == pytest.approx(cost)

    budgets(day_usd=cost / 2)
    second = task()
    with pytest.raises(
        AirflowFailException, match=r"its budget for the day .* is used up: .* raise day_usd"
    ) as refused:
        second.attempt()
    assert KEY not in str(refused.value)
    assert jobs_of(provider, second) == []
    budgets(day_usd=1000)
    second.attempt()  # a refusal leaves nothing behind
    assert len(jobs_of(provider, second)) == 1


def test_an_estimate_that_is_more_than_what_is_left_is_refused(task, provider, budgets):  # noqa: F811
    budgets(day_usd=5)
    tuning = task(estimated_usd=6.0)
    with pytest.raises(AirflowFailException, match=r"is too small for the next \$6\.00: \$0 of \$5\.00 are spent"):
        tuning.attempt()
    assert jobs_of(provider, tuning) == []


def test_a_job_under_way_counts_with_its_estimate_and_one_that_failed_with_nothing(task, provider, budgets):  # noqa: F811
    budgets(day_usd=10)
    under_way = task(estimated_usd=6.0, wait_for_completion=False)
    under_way.attempt()
    assert spent() == 6.0
    other = task(estimated_usd=6.0)
    with pytest.raises(AirflowFailException, match="is too small for the next"):
        other.attempt()
    provider.next_job(status="failed")
    failing = task(estimated_usd=2.0)
    with pytest.raises(AirflowFailException, match="failed"):
        failing.attempt()
    assert spent() == 6.0


def test_a_job_whose_price_nobody_knows_is_refused_where_there_is_a_budget(task, provider, budgets):  # noqa: F811
    budgets(price=None, day_usd=5)
    tuning = task()
    with pytest.raises(AirflowFailException, match=r'Set \{"training_usd_per_million_tokens": \.\.\.\} in its extra'):
        tuning.attempt()
    assert jobs_of(provider, tuning) == []


@on_storage("disk", "s3")
def test_an_amount_under_a_name_counts_once_and_its_last_version_counts(storage):
    total = SharedTotal(("sums", "one"))
    total.add(1.0)
    for _ in range(2):
        total.put("ff", 5.0)
    total.put("fe", 0.25)
    assert total.read() == 6.25
    total.put("ff", 2.0, version=2)
    total.put("ff", 5.0)
    assert total.read() == 3.25
