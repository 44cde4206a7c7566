"""Settings in a connection's extra: one form of error for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from include.ai.account import account_limit
from include.ai.canary import read_canary
from include.ai.connection import ModelSource
from include.ai.fallbacks import read_fallbacks
from include.common.prices import read_price
from include.fine_tuning.api import training_cost
from include.fine_tuning.checks import most_tokens
from include.jobs.service import OpenAIService
from include.spend.budgets import read_budgets

pytestmark = pytest.mark.one_stack


def of_model(read: Callable[[ModelSource], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda extra: read(ModelSource("conn", "openai-chat:m", {}, extra))


def of_service(read: Callable[[OpenAIService], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda extra: read(OpenAIService("conn", None, "key", {"model": "m", **extra}))


READERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "usd_per_million_tokens": lambda extra: read_price("conn", extra),
    "budgets": lambda extra: read_budgets("conn", extra),
    "canary": of_model(read_canary),
    "fallback_conn_ids": of_model(read_fallbacks),
    "requests_per_minute": of_model(account_limit),
    "tokens_per_minute": of_model(account_limit),
    "training_usd_per_million_tokens": of_service(lambda service: training_cost(service, 1)),
    "max_example_tokens": of_service(most_tokens),
}


@pytest.mark.parametrize("wrong", ["secret-value", -1, ["secret-value", {}], {"other": "secret-value"}], ids=repr)
@pytest.mark.parametrize("key", sorted(READERS))
def test_a_wrong_setting_names_the_connection_and_the_key_and_is_not_quoted(key, wrong):
    with pytest.raises(AirflowFailException, match=rf"^Connection 'conn', extra: {key}(\.[\w.]+)?: .+\.$") as error:
        READERS[key]({key: wrong})
    assert "secret-value" not in str(error.value)


@pytest.mark.parametrize("key", sorted(READERS))
def test_a_setting_that_is_not_there_or_null_is_none(key):
    assert not READERS[key]({key: None}) or key == "max_example_tokens"
    assert READERS[key]({key: None}) == READERS[key]({})


def test_an_unknown_key_of_a_setting_is_answered_with_those_that_there_are():
    with pytest.raises(AirflowFailException, match=r"budgets\.daily_usd: .*day_usd, month_usd, run_usd, warn_at"):
        read_budgets("conn", {"budgets": {"daily_usd": 3}})
