"""Who answers when the provider of a connection does not: its fallback connections, in order; on either SDK."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from airflow.sdk import dag, task
from pydantic_ai import Agent
from pydantic_ai.exceptions import ContentFilterError
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.function import FunctionModel

from include.ai import llm_kwargs, untrusted
from include.ai.account import account_limit
from include.ai.agents import agent_kwargs
from include.ai.fallbacks import LONGEST_WAIT_BEFORE_FALLBACK_S
from include.ai.layers import layered_model
from include.ai.limited_model import LimitedModel, TaskUsage
from include.ai.model import ConnectionModel, RequestRefused, connection_model
from tests.conftest import KEY, chat_requests
from tests.test_logs_and_secrets import closed_port
from tests.test_model_errors import waits  # noqa: F401 (a fixture)

PRIMARY, SECOND = "primary_model", "second_model"


def connection(url: str, model: str, **extra: Any) -> str:
    fields = {"conn_type": "pydanticai", "host": url, "password": KEY}
    return json.dumps({**fields, "extra": {"model": f"openai-chat:{model}", **extra}})


@pytest.fixture
def models(llm: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripted server behind two connections; the first names the second as its fallback."""
    monkeypatch.delenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT")
    prices = [{"usd_per_million_tokens": {"input": price, "output": price}} for price in (1, 1000)]
    first = connection(llm.base_url(), "first", fallback_conn_ids=[SECOND], **prices[0])
    monkeypatch.setenv(f"AIRFLOW_CONN_{PRIMARY.upper()}", first)
    monkeypatch.setenv(f"AIRFLOW_CONN_{SECOND.upper()}", connection(llm.base_url(), "second", **prices[1]))
    return llm


def ask() -> str:
    return Agent(connection_model(PRIMARY)).run_sync("How are you?").output


def asked(llm: Any) -> list[str]:
    return [request["model"] for request in chat_requests(llm)]


@pytest.mark.parametrize(
    ("status", "code", "calls"),
    [
        (401, "invalid_api_key", 1),
        (403, None, 1),
        (404, "model_not_found", 1),
        (429, "insufficient_quota", 1),
        (429, None, 9),  # the scripted server asks to come back
        (500, None, 3),
        (503, None, 9),
    ],
)
def test_where_the_provider_gives_no_answer_the_next_connection_is_asked(models, waits, logged, status, code, calls):  # noqa: F811
    models.fail(status, code=code, times=calls)
    models.reply("Well.")

    assert ask() == "Well."
    assert asked(models) == ["first"] * calls + ["second"]
    assert f"No answer. Connection '{PRIMARY}': " in logged()


def test_a_provider_that_cannot_be_reached_is_one_that_gives_no_answer(models, monkeypatch):
    nowhere = connection(f"http://{closed_port()}/v1", "first", fallback_conn_ids=[SECOND])
    monkeypatch.setenv(f"AIRFLOW_CONN_{PRIMARY.upper()}", nowhere)
    models.reply("Well.")

    assert ask() == "Well."


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_was_asked_is_refused_by_one_provider_and_no_other_is_asked(models, status):
    models.fail(status, times=None)

    with pytest.raises(RequestRefused, match=f"Connection '{PRIMARY}': the request is invalid"):
        ask()
    assert asked(models) == ["first"]


def test_an_answer_that_the_content_filter_withholds_is_asked_of_no_other(models, monkeypatch):
    asked_models = []

    def withhold(*_: Any) -> ModelResponse:
        asked_models.append("any")
        return ModelResponse([], finish_reason="content_filter")

    monkeypatch.setattr(ConnectionModel, "wrapped", FunctionModel(withhold))
    with pytest.raises(ContentFilterError):
        ask()
    assert len(asked_models) == 1


def test_a_short_wait_is_waited_out_and_a_long_one_is_not(models, waits):  # noqa: F811
    models.rate_limit(retry_after=LONGEST_WAIT_BEFORE_FALLBACK_S).reply("First.")
    assert ask() == "First."
    models.rate_limit(retry_after=LONGEST_WAIT_BEFORE_FALLBACK_S + 1).reply("Second.")
    assert ask() == "Second."

    assert asked(models) == ["first", "first", "first", "second"]
    assert waits == [LONGEST_WAIT_BEFORE_FALLBACK_S]


def test_the_last_connection_is_waited_for_as_any_other(models, waits):  # noqa: F811
    models.fail(401).rate_limit(retry_after=300).reply("Well.")

    assert ask() == "Well."
    assert waits == [300]


@pytest.mark.parametrize(("second", "kind"), [(401, AirflowFailException), (500, AirflowException)])
def test_where_none_answers_the_error_names_each_and_a_retry_is_made_only_if_it_can_help(models, waits, second, kind):  # noqa: F811
    models.fail(401).fail(second, times=None, message=f"Bad key {KEY}")

    with pytest.raises(AirflowException, match=rf"'{PRIMARY}': set its password .*Connection '{SECOND}': ") as error:
        ask()
    assert type(error.value) is kind
    assert KEY not in str(error.value)


# What the extra may hold


@pytest.mark.parametrize("wrong", ["second_model", [7], {"a": "b"}, [PRIMARY], [SECOND, SECOND]], ids=repr)
def test_fallbacks_that_are_not_other_connections_are_an_error_before_anything_is_asked(models, monkeypatch, wrong):
    line = connection(models.base_url(), "first", fallback_conn_ids=wrong)
    monkeypatch.setenv(f"AIRFLOW_CONN_{PRIMARY.upper()}", line)

    with pytest.raises(AirflowFailException, match=rf"Connection '{PRIMARY}', extra: fallback_conn_ids[.:]"):
        ask()
    assert asked(models) == []


@pytest.mark.parametrize("wrong", ["missing", "no model", "of its own", "price"])
def test_a_fallback_that_could_not_answer_is_known_before_the_outage(models, monkeypatch, wrong):
    name = f"AIRFLOW_CONN_{SECOND.upper()}"
    if wrong == "missing":
        monkeypatch.delenv(name)
    elif wrong == "no model":
        monkeypatch.setenv(name, '{"conn_type": "pydanticai"}')
    elif wrong == "of its own":
        monkeypatch.setenv(name, connection(models.base_url(), "second", fallback_conn_ids=["third"]))
    else:
        monkeypatch.setenv(name, connection(models.base_url(), "second", usd_per_million_tokens=3))

    with pytest.raises(AirflowFailException, match=f"(C|c)onnection '{SECOND}'"):
        ask()
    assert asked(models) == []


def test_empty_lines_of_common_ais_form_are_no_connections(models, monkeypatch):
    line = connection(models.base_url(), "first", fallback_conn_ids=["", f" {SECOND} ", ""])
    monkeypatch.setenv(f"AIRFLOW_CONN_{PRIMARY.upper()}", line)
    models.fail(401).reply("Well.")

    assert ask() == "Well."


# A model per task, in tasks of either SDK


def example_dag() -> Any:
    @dag(schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC))
    def two_models():
        @task.llm(**llm_kwargs(PRIMARY), system_prompt="Answer.")
        def ask_first():
            return untrusted("How are you?")

        @task.agent(**agent_kwargs(system_prompt="Answer.", conn_id=SECOND))
        def ask_second(before):
            return untrusted("And now?")

        ask_second(ask_first())

    return two_models()


def test_each_task_asks_the_model_of_its_own_connection(run_any_dag, models):
    models.reply("Well.").reply("Better.")
    run = run_any_dag(example_dag())

    assert run.state == "success"
    assert asked(models) == ["first", "second"]
    assert [run.xcom("ask_first"), run.xcom("ask_second")] == ["Well.", "Better."]


def test_usage_and_price_of_a_task_are_those_of_the_connection_that_answered(run_any_dag, models):
    models.fail(401).reply("Well.").reply("Better.")
    run = run_any_dag(example_dag())

    assert run.state == "success"
    usage = run.xcom("ask_first", "llm_usage")
    assert asked(models) == ["first", "second", "second"]
    assert usage["requests"] == 1
    tokens = usage["input_tokens"] + usage["output_tokens"]
    assert usage["cost_usd"] == pytest.approx(tokens * 1000 / 1e6)
    assert usage["model"] == "second"


def test_the_limits_are_those_of_the_connection_that_is_asked(models, storage, monkeypatch):
    line = connection(models.base_url(), "second", requests_per_minute=600)
    monkeypatch.setenv(f"AIRFLOW_CONN_{SECOND.upper()}", line)
    usage = TaskUsage()
    model = layered_model(PRIMARY, lambda conn_id: LimitedModel(conn_id, usage, 8))
    models.fail(401).reply("Well.")

    assert Agent(model).run_sync("How are you?").output == "Well."
    assert [account_limit(each.source) is not None for each in model.models] == [False, True]


def test_an_answer_in_a_form_reaches_the_task_also_from_the_second_connection(models):
    models.fail(401).call_tool("final_result", {"response": 7})

    assert Agent(connection_model(PRIMARY), output_type=int).run_sync("How many?").output == 7
