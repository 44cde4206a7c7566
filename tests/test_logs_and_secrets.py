"""Nothing that a person wrote, a model answered or a key holder knows ends up where it can be read by others."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from airflow.providers.common.compat.sdk import AirflowException
from sqlalchemy import select

from include.ai import connection, embeddings
from include.jobs.service import openai_service, task_error
from tests.conftest import KEY, model_connection
from tests.test_multi_agent import FINANCE
from tests.test_prompt_chaining import ANALYSIS, REPLY

ASKED = "marker-of-the-asker"
ANSWERED = "marker-of-the-model"


def run_prompt_chaining(run_dag, llm, reply=None):
    llm.call_tool("final_result", {**ANALYSIS, "key_issues": [ANSWERED]})
    llm.call_tool("final_result", reply or {**REPLY, "message": f"Dear customer, {ANSWERED}"})
    return run_dag("prompt_chaining", {"ticket": f"My vans are offline, {ASKED}."})


def run_multi_agent(run_dag, llm):
    _, tool, arguments = FINANCE
    llm.call_tool("final_result", {"market_research": [], "financial_analysis": [ANSWERED]})
    llm.call_tool(tool, arguments).reply(f"It earns money, {ANSWERED}.")
    llm.call_tool("final_result", {"answer": f"A sound company, {ANSWERED}.", "open_questions": [ANSWERED]})
    return run_dag("multi_agent", {"company": "Tretwald", "question": f"Is it sound, {ASKED}?"})


def assert_really_captured(log):
    assert "Done. Returned value not shown" in log  # Airflow's own lines
    assert "Model gpt-6-luna answered in" in log  # ours


@pytest.mark.parametrize("run", [run_prompt_chaining, run_multi_agent])
def test_neither_prompt_nor_answer_nor_key_is_logged(run_dag, llm, logged, run):
    assert run(run_dag, llm).state == "success"

    log = logged()
    assert_really_captured(log)
    assert ASKED not in log
    assert ANSWERED not in log
    assert KEY not in log


def test_an_answer_that_stays_invalid_fails_the_task_without_being_logged(run_dag, llm, logged):
    llm.call_tool("final_result", {"category": ANSWERED, "urgency": 7, "key_issues": ANSWERED}, times=None)
    run = run_dag("prompt_chaining", {"ticket": f"My vans are offline, {ASKED}."})

    assert run.state == "failed"
    log = logged()
    assert "Model gpt-6-luna answered in" in log
    assert "Task failed with exception" in log
    assert ASKED not in log
    assert ANSWERED not in log


def test_prompt_and_answer_are_there_for_who_asks_for_debug_logs(run_dag, llm, caplog):
    with caplog.at_level(logging.DEBUG, logger="include.ai.model"):
        run_prompt_chaining(run_dag, llm)

    assert ASKED in caplog.text
    assert ANSWERED in caplog.text


@pytest.mark.parametrize("run", [run_prompt_chaining, run_multi_agent])
def test_the_key_is_in_no_xcom_no_rendered_field_and_no_serialized_dag(run_dag, llm, storage, run):
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    dag_run = run(run_dag, llm).run
    with create_session() as session:
        run_of = lambda model: select(model).where(model.run_id == dag_run.run_id)  # noqa: E731
        xcoms = [json.dumps(row.value) for row in session.scalars(run_of(XComModel))]
        fields = [json.dumps(row.rendered_fields) for row in session.scalars(run_of(RenderedTaskInstanceFields))]
        dags = [json.dumps(row.data) for row in session.scalars(select(SerializedDagModel))]
    files = [file.read_text() for file in storage.rglob("*") if file.is_file()]

    assert any(ANSWERED in xcom for xcom in xcoms)
    assert any("op_kwargs" in field for field in fields)
    assert any(dag_run.dag_id in dag for dag in dags)
    assert any(ANSWERED in file for file in files)
    for text in [*xcoms, *fields, *dags, *files]:
        assert KEY not in text


# A connection's URL that holds a login and a key, and servers that repeat what they were sent

LOGIN, PASSWORD, QUERY = "login-canary", "password-canary", "query-canary"
CANARIES = (LOGIN, PASSWORD, QUERY, KEY)
# Statuses, of which 307 leads to another host, and URLs that do not lead to an answer.
CHAT_FAULTS = [401, 404, 400, 422, 307, "unreachable", "late", "not a URL"]
EMBEDDING_FAULTS = [401, 404, 400, 307, "unreachable", "late", "not a URL"]
JOB_FAULTS = [401, 400, 422, 307, "unreachable", "not a URL"]
FAULTS = [*CHAT_FAULTS, *EMBEDDING_FAULTS, *JOB_FAULTS]


class EchoingServer(BaseHTTPRequestHandler):
    """Answers each request with the status that its path names, and with all that it was sent as the error."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.hosts.append(self.headers["Host"])
        status = int(self.path.split("/")[1])
        echo = f"{KEY} https://{LOGIN}:{PASSWORD}@host/v1?key={QUERY} {self.path} {self.headers}"
        body = json.dumps({"error": {"message": echo, "code": echo, "type": KEY, "param": echo}}).encode()
        self.send_response(status)
        if status == 307:
            self.send_header("Location", f"http://localhost:{self.server.server_port}/200/elsewhere")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Should-Retry", "false")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def echoing():
    with ThreadingHTTPServer(("127.0.0.1", 0), EchoingServer) as server:
        server.hosts = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def secret_url(address: str, path: str = "v1") -> str:
    return f"http://{LOGIN}:{PASSWORD}@{address}/{path}?key={QUERY}"


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return f"127.0.0.1:{unused.getsockname()[1]}"


def stored_texts(dag_run) -> list[str]:
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    with create_session() as session:
        run_of = lambda model: select(model).where(model.run_id == dag_run.run_id)  # noqa: E731
        xcoms = [json.dumps(row.value) for row in session.scalars(run_of(XComModel))]
        return xcoms + [json.dumps(row.rendered_fields) for row in session.scalars(run_of(RenderedTaskInstanceFields))]


def test_the_url_of_a_model_that_answers_reaches_no_log_and_no_xcom(run_dag, llm, logged, monkeypatch):
    url = secret_url(llm.url.removeprefix("http://")).partition("?")[0]  # the client does not keep a query
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", model_connection(url))
    run = run_prompt_chaining(run_dag, llm)

    assert run.state == "success"
    log = logged()
    assert_really_captured(log)
    assert "HTTP Request" not in log
    for canary in CANARIES:
        assert canary not in log
        assert not any(canary in text for text in stored_texts(run.run))


@pytest.mark.parametrize("what", CHAT_FAULTS)
def test_no_error_of_a_chat_model_shows_the_login_or_key_of_its_url(run_dag, llm, echoing, logged, monkeypatch, what):
    address = f"127.0.0.1:{echoing.server_port}"
    url = secret_url(address, f"{what}/v1")
    if what == "unreachable":
        url = secret_url(closed_port())
    elif what == "late":
        monkeypatch.setattr(connection, "CALL_TIMEOUT_S", 0.2)
        llm.delay(1, times=None)
        url = secret_url(llm.url.removeprefix("http://"))
    elif what == "not a URL":
        url = f"http://{LOGIN}:{PASSWORD}/{KEY}@{address}/v1?key={QUERY}"
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", model_connection(url))
    run = run_dag("prompt_chaining", {"ticket": "My vans are offline."})

    assert run.state == "failed"
    log = logged()
    assert "Connection 'pydanticai_default'" in log
    assert what != 307 or ("redirects to another host" in log and set(echoing.hosts) == {address})
    for canary in CANARIES:
        assert canary not in log
        assert not any(canary in text for text in stored_texts(run.run))


@pytest.mark.parametrize("what", EMBEDDING_FAULTS)
def test_no_error_of_an_embedding_model_shows_the_login_or_key_of_its_url(llm, echoing, logged, monkeypatch, what):
    address = f"127.0.0.1:{echoing.server_port}"
    url = secret_url(address, f"{what}/v1")
    if what == "unreachable":
        url = secret_url(closed_port())
    elif what == "late":
        monkeypatch.setattr(connection, "CALL_TIMEOUT_S", 0.2)
        llm.delay(1, times=None)
        url = secret_url(llm.url.removeprefix("http://"))
    elif what == "not a URL":
        url = f"http://{LOGIN}:{PASSWORD}/{KEY}@{address}/v1?key={QUERY}"
    monkeypatch.setenv("AIRFLOW_CONN_EMBEDDINGS_DEFAULT", model_connection(url, "openai:text-embedding-3-small"))
    with pytest.raises(AirflowException, match="Connection 'embeddings_default'") as raised:
        embeddings.Embedder().embed_query("hello")

    shown = logged() + "".join(traceback.format_exception(raised.value))
    assert what != 307 or ("redirects to another host" in shown and set(echoing.hosts) == {address})
    for canary in CANARIES:
        assert canary not in shown


@pytest.mark.parametrize("what", JOB_FAULTS)
def test_no_error_of_a_service_for_jobs_shows_the_login_or_key_of_its_url(echoing, logged, monkeypatch, what):
    address = f"127.0.0.1:{echoing.server_port}"
    url = secret_url(address, f"{what}/v1") if what != "unreachable" else secret_url(closed_port())
    if what == "not a URL":
        url = f"http://{LOGIN}:{PASSWORD}/{KEY}@{address}/v1?key={QUERY}"
    monkeypatch.setenv("AIRFLOW_CONN_OPENAI_DEFAULT", json.dumps({"conn_type": "openai", "host": url, "password": KEY}))

    async def create() -> None:
        from openai import APIError

        service = openai_service("openai_default")
        try:
            await service.client(retries=0).fine_tuning.jobs.create(model="m", training_file="f")
        except APIError as error:
            raise task_error(service, "starting the job", error) from None

    with pytest.raises(AirflowException, match="Connection 'openai_default'") as raised:
        asyncio.run(create())

    shown = logged() + "".join(traceback.format_exception(raised.value))
    assert what != 307 or ("redirects to another host" in shown and set(echoing.hosts) == {address})
    for canary in CANARIES:
        assert canary not in shown


# Error first


@pytest.mark.parametrize("what", ["wrong key", "no connection", "wrong host", "answers of another form"])
def test_the_log_of_a_failed_task_ends_with_the_error_below_few_frames_of_libraries(
    run_dag, llm, logged, monkeypatch, what
):
    if what == "wrong key":
        llm.fail(401, times=None)
    elif what == "no connection":
        monkeypatch.delenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT")
    elif what == "wrong host":
        monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", model_connection(f"http://{closed_port()}/v1"))
    else:
        llm.reply("in plain text", times=None)
    assert run_dag("prompt_chaining").state == "failed"

    log = logged()
    traceback_lines = log.partition("Task failed with exception")[2].partition("Traceback")[2].splitlines()
    last = next(number for number, line in enumerate(traceback_lines) if number and line[:1] not in ("", " "))
    error = {
        "wrong key": "AirflowFailException: Connection 'pydanticai_default': set its password",
        "no connection": "AirflowFailException: Set OPENAI_API_KEY, or create the connection",
        "wrong host": "AirflowException: Connection 'pydanticai_default': check its host",
        "answers of another form": "UnexpectedModelBehavior: ",
    }[what]
    assert error in traceback_lines[last]
    frames = [line for line in traceback_lines[:last] if line.startswith('  File "')]
    assert 0 < len(frames) <= 14
    assert "During handling of the above exception" not in log
    assert "Retrying request" not in log
