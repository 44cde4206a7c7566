"""What a task does when the model's provider errs, over real HTTP: wait, try again, or fail and say what to set."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models.function import FunctionModel

from include.ai import connection, layers, repeats
from include.ai import model as llm_model
from include.ai.connection import ModelSource
from include.ai.model import ConnectionModel, RequestRefused, connection_model
from tests.conftest import KEY, chat_requests, model_connection
from tests.test_prompt_chaining import ANALYSIS, REPLY, script

PROMPT = "a prompt that nobody else may read"


def ask(prompt: str = PROMPT) -> str:
    return Agent(connection_model("pydanticai_default")).run_sync(prompt).output


# What a later attempt mends


def test_a_rate_limit_is_waited_out_as_long_as_the_provider_asks(llm):
    llm.rate_limit(retry_after=0.5).reply("hello")

    started = time.monotonic()
    assert ask() == "hello"
    assert time.monotonic() - started >= 0.5
    assert len(llm.requests) == 2
    llm.assert_resilient()


def test_without_layers_as_in_a_copied_pattern_the_providers_own_client_repeats_a_call(llm):
    llm.fail(500, times=2).reply("hello")

    assert Agent(ConnectionModel("pydanticai_default")).run_sync(PROMPT).output == "hello"
    assert len(llm.requests) == 3


def test_two_server_errors_are_tried_again_within_the_same_try_of_the_task(run_dag, llm):
    llm.fail(500, times=2)
    script(llm)
    run = run_dag("prompt_chaining")

    assert run.state == "success"
    assert run.task_instance("analyze_ticket").try_number == 1
    assert len(llm.requests) == 4
    llm.assert_resilient()


def test_an_outage_longer_than_one_try_is_survived_by_the_tasks_retry(run_dag, llm):
    llm.fail(500, times=3)
    script(llm)
    run = run_dag("prompt_chaining")

    assert run.state == "success"
    assert run.task_instance("analyze_ticket").try_number == 2


def test_an_outage_ends_in_an_error_after_a_bounded_number_of_requests(llm):
    llm.fail(503, times=None, retry_after=0.01)

    with pytest.raises(AirflowException, match=r"the call failed.*status_code 503") as error:
        ask()
    assert not isinstance(error.value, AirflowFailException)
    assert len(llm.requests) <= 10
    llm.assert_resilient()


def test_a_call_that_takes_too_long_is_tried_again(llm, monkeypatch):
    monkeypatch.setattr(connection, "CALL_TIMEOUT_S", 0.3)
    llm.delay(1.5).reply("too late").reply("in time")

    assert ask() == "in time"


def test_a_provider_that_never_answers_in_time_is_named(llm, monkeypatch):
    monkeypatch.setattr(connection, "CALL_TIMEOUT_S", 0.2)
    llm.delay(1, times=None)

    with pytest.raises(AirflowException, match=r"Connection 'pydanticai_default'.*no answer within") as error:
        ask()
    assert not isinstance(error.value, AirflowFailException)


@pytest.fixture
def dropping_proxy(llm: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A proxy before the scripted server that closes the connection of its first request without an answer."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(self.path)
            if len(received) == 1:
                return
            request = urllib.request.Request(llm.url + self.path, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request) as response:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(response.read())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/v1"
        monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", model_connection(address))
        yield received
        server.shutdown()


def test_a_dropped_connection_is_tried_again(llm, dropping_proxy):
    llm.reply("hello")

    assert ask() == "hello"
    assert len(dropping_proxy) == 2


def test_where_nothing_listens_the_error_says_so(llm, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", model_connection(address))

    with pytest.raises(AirflowException, match=f"check its host.*cannot be reached.*at {address}"):
        ask()


@pytest.mark.parametrize("kind", ["malformed_arguments", "unknown_tool"])
def test_a_malformed_answer_is_asked_for_again(run_dag, llm, kind):
    llm.break_tool_call(kind)
    llm.call_tool("final_result", ANALYSIS).call_tool("final_result", ANALYSIS).call_tool("final_result", REPLY)
    run = run_dag("prompt_chaining")

    assert run.state == "success"
    assert run.xcom("analyze_ticket") == ANALYSIS
    assert run.task_instance("analyze_ticket").try_number == 1
    assert len(chat_requests(llm)) == 3


# How often, and after which waits


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the model waited by itself; nobody really waits."""
    seconds: list[float] = []

    async def sleep(duration: float) -> None:
        seconds.append(duration)

    monkeypatch.setattr(layers, "asyncio", SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread))
    return seconds


def test_a_long_wait_is_obeyed(llm, waits):
    llm.rate_limit(retry_after=300).reply("hello")

    assert ask() == "hello"
    assert waits == [300]


def test_a_wait_longer_than_the_longest_fails_the_try_at_once(llm, waits):
    llm.rate_limit(retry_after=repeats.LONGEST_WAIT_S + 1, times=None)

    with pytest.raises(AirflowException, match="status_code 429") as error:
        ask()
    assert not isinstance(error.value, AirflowFailException)
    assert waits == []
    assert len(llm.requests) == 1


def test_all_waits_of_a_call_together_are_no_longer_than_the_longest(llm, waits):
    llm.rate_limit(retry_after=0.6 * repeats.LONGEST_WAIT_S, times=None)

    with pytest.raises(AirflowException, match="status_code 429"):
        ask()
    assert len(waits) == 1


def test_a_wait_of_a_fraction_of_a_second_is_obeyed(llm, monkeypatch, waits):
    def answer(*_: Any) -> ModelResponse:
        if not waits:
            raise ModelHTTPError(429, "a-model", headers={"retry-after": "20.5"})
        return ModelResponse([TextPart("hello")])

    monkeypatch.setattr(ConnectionModel, "wrapped", FunctionModel(answer))
    assert ask() == "hello"
    assert waits == [20.5]


@pytest.mark.parametrize("status", [408, 409, 500, 502])
def test_a_call_whose_failure_may_pass_is_made_three_times_and_left_to_the_tasks_retry(llm, waits, status):
    llm.fail(status, times=None)

    with pytest.raises(AirflowException, match=f"the call failed.*status_code {status}") as error:
        ask()
    assert not isinstance(error.value, AirflowFailException)
    assert len(llm.requests) == 3
    assert 0.375 <= waits[0] <= 0.5 < 0.75 <= waits[1] <= 1
    assert len(waits) == 2


@pytest.mark.parametrize("status", [429, 503, 504, 529])
def test_a_call_that_the_provider_asks_to_make_later_is_made_nine_times(llm, waits, status):
    llm.fail(status, retry_after=3, times=None)

    with pytest.raises(AirflowException, match=f"the call failed.*status_code {status}") as error:
        ask()
    assert not isinstance(error.value, AirflowFailException)
    assert waits == [3] * 8
    assert len(llm.requests) == 9


@pytest.mark.parametrize("status", [400, 405, 410, 413, 415, 422])
def test_a_refused_request_is_made_once(llm, waits, status):
    llm.fail(status, times=None)

    with pytest.raises(RequestRefused, match=f"the request is invalid.*status_code {status}"):
        ask()
    assert len(llm.requests) == 1


@given(
    st.lists(
        st.none() | st.floats(0, 700).map(str) | st.sampled_from(["nan", "inf", "-5", "soon", "", "0"]), max_size=12
    )
)
def test_whatever_the_provider_asks_calls_and_waits_are_bounded_and_no_wait_is_cut_short(asked):
    waits: list[float] = []

    def fail(*_: Any) -> ModelResponse:
        said = asked[len(waits) % len(asked)] if asked else None
        raise ModelHTTPError(503, "a-model", headers=None if said is None else {"retry-after": said})

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "asyncio", SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread))
        patch.setattr(ConnectionModel, "source", ModelSource("c", "openai-chat:m", {}, {}))
        patch.setattr(ConnectionModel, "wrapped", FunctionModel(fail))
        with pytest.raises(AirflowException, match="the call failed"):
            ask()

    assert len(waits) < repeats.MOST_CALLS
    assert all(0 < wait < float("inf") for wait in waits)
    assert sum(waits) <= repeats.LONGEST_WAIT_S + sum(repeats.PAUSES_S)
    for wait, said in zip(waits, asked, strict=False):
        assert said in (None, "nan", "inf", "-5", "soon", "", "0") or wait >= float(said) or float(said) == 0


def test_the_accounts_limits_and_the_price_never_reach_the_provider(llm, storage, monkeypatch):
    extra = {"requests_per_minute": 60, "tokens_per_minute": 1000}
    price = {"usd_per_million_tokens": {"input": 1, "output": 2}}
    connection = json.loads(model_connection(llm.base_url()))
    connection["extra"] = {**connection["extra"], **extra, **price}
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", json.dumps(connection))
    llm.reply("hello")

    assert ask() == "hello"


# What no later attempt mends


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (401, "invalid_api_key", "set its password (or OPENAI_API_KEY)"),
        (403, None, "set its password (or OPENAI_API_KEY)"),
        (404, "model_not_found", 'set its extra {"model": ...} or its host'),
        (400, None, "the request is invalid"),
        (400, "context_length_exceeded", "the text is too long for the model"),
        (429, "insufficient_quota", "the account's quota is used up. Raise it, or"),
    ],
)
def test_an_error_that_no_retry_mends_fails_at_once_and_says_what_to_set(run_dag, llm, logged, status, code, advice):
    message = f"Incorrect key {KEY} for the prompt {PROMPT}"
    llm.fail(status, code=code, message=message, retry_after=0.01 if status == 429 else None, times=None)
    run = run_dag("prompt_chaining", {"ticket": PROMPT})

    assert run.state == "failed"
    assert run.task_instance("analyze_ticket").try_number == 1
    assert len(llm.requests) == 1
    llm.assert_resilient()
    log = logged()
    assert re.search(rf"\w: Connection 'pydanticai_default': {re.escape(advice)}", log)
    assert "(model 'gpt-6-luna' at http://127.0.0.1" in log
    assert f"status_code {status}" in log
    assert KEY not in log
    assert PROMPT not in log


# Connections that name no usable model


def test_without_connection_and_key_the_task_fails_at_once_and_says_what_to_set(run_dag, llm, logged, monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT")
    run = run_dag("prompt_chaining")

    assert run.state == "failed"
    assert run.task_instance("analyze_ticket").try_number == 1
    assert "Set OPENAI_API_KEY, or create the connection 'pydanticai_default'" in logged()
    assert llm.requests == []


@pytest.mark.parametrize("model", ["", None, 7], ids=repr)
def test_a_connection_without_a_model_says_how_to_name_one(llm, monkeypatch, model):
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", model_connection(llm.base_url(), model))

    with pytest.raises(
        AirflowFailException, match=r"Connection 'pydanticai_default': set its extra to .*names no model"
    ):
        ask()


@pytest.mark.parametrize("model", ["nosuchprovider:gpt-6-luna", "gpt-6-luna-without-provider"])
def test_an_unknown_provider_is_named_with_what_to_set(llm, monkeypatch, model):
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", model_connection(llm.base_url(), model))

    with pytest.raises(AirflowFailException, match=f"names the model '{model}', which cannot be built") as error:
        ask()
    assert KEY not in str(error.value)


def test_a_key_of_the_extra_that_the_provider_does_not_know_is_named(llm, monkeypatch):
    connection = model_connection(llm.base_url()).replace('"model"', '"api_versoin": "2026-01-01", "model"')
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", connection)

    with pytest.raises(AirflowFailException, match=r"cannot be built: .*api_versoin"):
        ask()


def test_openai_api_key_alone_is_enough_for_openais_default_model(llm, monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = ConnectionModel("pydanticai_default")

    assert f"openai-chat:{model.model_name}" == llm_model.DEFAULT_MODEL
    assert str(model.base_url).rstrip("/") == "https://api.openai.com/v1"


def test_the_default_models_are_in_the_openai_packages_own_lists():
    from openai.types import EmbeddingModel
    from openai.types.shared import ChatModel

    from include.ai import embeddings

    assert llm_model.DEFAULT_MODEL.split(":")[1] in get_args(ChatModel)
    assert embeddings.DEFAULT_MODEL.split(":")[1] in get_args(EmbeddingModel)
