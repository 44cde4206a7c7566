"""Traces (`include.traces`): what arrives at a tool by OTLP, of real tasks on either SDK."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any, Literal
from uuid import uuid4

import pytest
from airflow.sdk import dag, get_current_context, task
from airflow.sdk.log import mask_secret
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import context, trace
from opentelemetry.context import Context
from pydantic_ai import Agent
from pydantic_ai.embeddings import Embedder
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.usage import RequestUsage

from include.ai import BaseModel, llm_kwargs, untrusted
from include.ai.agents import agent_kwargs
from include.ai.asking import Asking
from include.ai.model import connection_model
from include.common.storage import storage_path
from include.jobs.job import Job, Outcome
from include.jobs.operator import PaidJobOperator
from include.messages.contract import DEAD_LETTERS, REPLIES, new_request
from include.messages.kafka import stream
from include.messages.model import PromptedModel
from include.page.trace_link import trace_link
from include.rag.search import best_hits
from include.rag.stores.base import Hit, SearchQuery
from include.traces import listener as listener_module
from include.traces import sending as sending_module
from include.traces.agents import trace_agents
from include.traces.chunks import TRACED_ROWS
from include.traces.ids import attempt_span_id, run_span_id, run_trace_id
from include.traces.listener import TaskSpans
from include.traces.sending import LONGEST_FLUSH_S, Telemetry, begin_sending, telemetry
from include.traces.settings import CONTENT, TRACE_URL, trace_url, traces_are_on
from tests.conftest import KEY, PROJECT, chat_requests
from tests.kafka import position
from tests.otlp import Receiver

DATE = datetime(2026, 1, 2, tzinfo=UTC)
PROMPT, QUESTION, ANSWER = "The prompt of the author.", "The question of a customer.", "The answer of the model."


def listener_managers() -> list[Any]:
    """Those of Airflow that report the ends of runs, and of tasks; on 3.1 they are one."""
    from airflow.listeners import listener

    try:
        from airflow.sdk import listener as of_tasks
    except ImportError:
        return [listener.get_listener_manager()]
    return [listener.get_listener_manager(), of_tasks.get_listener_manager()]


@pytest.fixture(scope="module")
def sending() -> Iterator[Receiver]:
    """This process sends traces, as a task's does, until the end of this file."""
    with Receiver() as receiver, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        patch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer of-the-tool")
        patch.setenv("OTEL_SERVICE_NAME", "tests")
        for manager in listener_managers():
            if not any(isinstance(each, TaskSpans) for each in manager.pm.get_plugins()):
                manager.add_listener(TaskSpans())
        yield receiver
        for manager in listener_managers():
            for each in manager.pm.get_plugins():
                if isinstance(each, TaskSpans):
                    manager.pm.unregister(each)
        Agent.instrument_all(False)
        Embedder.instrument_all(False)
        telemetry().tracers.shutdown()


@pytest.fixture
def received(sending: Receiver) -> Iterator[Callable[[], Receiver]]:
    """Return what has arrived since the test began, in which no span is open."""
    begin_sending()
    telemetry().flush()
    sending.forget()

    def now() -> Receiver:
        telemetry().flush()
        return sending

    token = context.attach(Context())
    yield now
    context.detach(token)


def a_dag(body: Callable[[], Any]) -> Any:
    return dag(schedule=None, start_date=DATE)(body)()


def look_up(place: str) -> str:
    """Look it up."""
    return f"{place}: {ANSWER}"


@pytest.fixture
def three_tasks(received, run_any_dag, llm) -> Receiver:
    """A run with a task without a model, one of `@task.llm` and an agent with a tool; and what arrived of it."""

    def traced_run():
        @task
        def read():
            return QUESTION

        @task.llm(**llm_kwargs(), system_prompt=PROMPT)
        def classify(text):
            return untrusted(text)

        @task.agent(**agent_kwargs(system_prompt=PROMPT, tools=[look_up]))
        def find(text):
            return untrusted(text)

        find(classify(read()))

    llm.reply(ANSWER)
    llm.call_tool("look_up", {"place": "Oslo"})
    llm.reply(ANSWER)
    assert run_any_dag(a_dag(traced_run)).state == "success"
    return received()


CHAT = ("chat gpt-6-luna", [])


def test_a_run_is_one_trace_of_its_tasks_agents_calls_and_tools(three_tasks):
    agent = ("invoke_agent agent", [CHAT, ("execute_tool look_up", []), CHAT])
    tasks = [("worker.read", []), ("worker.classify", [("invoke_agent agent", [CHAT])]), ("worker.find", [agent])]
    assert three_tasks.tree() == [("dag_run.traced_run", tasks)]
    assert len({span.trace_id for span in three_tasks.spans}) == 1


def test_a_span_says_whose_it_is_which_prompt_and_connection_it_was_and_what_it_cost(three_tasks):
    spans = [span for span in three_tasks.spans if span.name.startswith("chat")]
    for span in spans:
        assert span.attributes["airflow.dag_id"] == "traced_run"
        assert span.attributes["airflow.task_instance.try_number"] == 1
        assert span.attributes["airflow.connection.id"] == "pydanticai_default"
        assert span.attributes["gen_ai.response.model"] == "gpt-6-luna"
        assert span.attributes["operation.cost"] > 0
    assert [span.attributes["airflow.task_id"] for span in spans] == ["classify", "find", "find"]
    prompts = [span.attributes["genai.prompt.fingerprint"] for span in spans]
    assert prompts[0] != prompts[1] == prompts[2]


def test_neither_prompts_nor_answers_nor_keys_are_sent_but_the_tools_own_key_is(three_tasks):
    sent = b"".join(three_tasks.bodies)
    for text in (PROMPT, QUESTION, ANSWER, KEY):
        assert text.encode() not in sent
    assert {headers["authorization"] for headers in three_tasks.headers} == {"Bearer of-the-tool"}


def test_metrics_count_calls_tokens_and_cost_by_dag_and_model(three_tasks):
    found = three_tasks.metrics
    ((labels, calls),) = found["genai.calls"].items()
    assert dict(labels) == {
        "airflow.connection.id": "pydanticai_default",
        "airflow.dag_id": "traced_run",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt-6-luna",
    }
    assert calls == 3
    spans = [span.attributes for span in three_tasks.spans if span.name.startswith("chat")]
    tokens = {dict(labels)["gen_ai.token.type"]: count for labels, count in found["gen_ai.client.token.usage"].items()}
    assert tokens == {kind: sum(each[f"gen_ai.usage.{kind}_tokens"] for each in spans) for kind in ("input", "output")}
    assert found["genai.cost"][labels] == pytest.approx(sum(each["operation.cost"] for each in spans))
    assert found["gen_ai.client.operation.duration"][labels] > 0


@pytest.mark.one_stack
def test_with_one_setting_spans_hold_prompts_and_answers_but_no_secret(received, run_any_dag, llm, monkeypatch):
    def with_content():
        @task.llm(**llm_kwargs(), system_prompt=PROMPT)
        def classify():
            mask_secret("hunter2-of-a-tool")
            return untrusted(f"{QUESTION} {KEY} hunter2-of-a-tool")

        classify()

    monkeypatch.setenv(CONTENT, "true")
    trace_agents.cache_clear()
    llm.reply(ANSWER)
    try:
        run_any_dag(a_dag(with_content))
    finally:
        monkeypatch.delenv(CONTENT)
        trace_agents.cache_clear()
        trace_agents()
    sent = b"".join(received().bodies)
    for text in (PROMPT, QUESTION, ANSWER):
        assert text.encode() in sent
    assert KEY.encode() not in sent
    assert b"hunter2" not in sent


def test_a_retry_is_a_second_attempt_in_the_same_trace_and_a_failure_names_no_text(received, run_any_dag, llm):
    def retried():
        @task.llm(**{**llm_kwargs(), "retries": 1}, system_prompt=PROMPT)
        def classify():
            return untrusted(QUESTION)

        classify()

    llm.fail(500, times=3)
    llm.reply(ANSWER)
    assert run_any_dag(a_dag(retried)).state == "success"
    found = received()
    agent = ("invoke_agent agent", [CHAT])
    attempts = [("worker.classify 1 failed", [agent]), ("worker.classify 2 success", [agent])]
    names = ("airflow.task_instance.try_number", "airflow.task_instance.state")
    assert found.tree(*names[1:]) == [
        ("dag_run.retried", [(name.replace(" 1", "").replace(" 2", ""), spans) for name, spans in attempts])
    ]
    failed = [span for span in found.spans if span.failed]
    assert {span.attributes["airflow.task_instance.try_number"] for span in failed} == {1}
    assert next(span.events for span in found.spans if span.name.startswith("chat")).count("no answer") == 3
    assert QUESTION.encode() not in b"".join(found.bodies)


def test_mapped_tasks_have_their_index_in_their_names(received, run_any_dag, llm):
    def mapped():
        @task.llm(**llm_kwargs(), system_prompt=PROMPT)
        def classify(text):
            return untrusted(text)

        classify.expand(text=["one", "two"])

    llm.reply(ANSWER, times=2)
    run_any_dag(a_dag(mapped))
    agent = ("invoke_agent agent", [CHAT])
    ((run, tasks),) = received().tree()
    assert run == "dag_run.mapped"
    assert sorted(tasks) == [("worker.classify[0]", [agent]), ("worker.classify[1]", [agent])]  # they run in any order


def test_a_replay_makes_no_new_call_and_its_span_says_whose_answer_it_is(received, run_any_dag, llm):
    def replayed():
        @task(retries=1)
        def ask():
            Agent(connection_model("pydanticai_default"), system_prompt=PROMPT).run_sync(QUESTION)
            if get_current_context()["ti"].try_number == 1:
                raise ValueError("It is killed after the call.")

        ask()

    llm.reply(ANSWER, times=None)
    assert run_any_dag(a_dag(replayed)).state == "success"
    reused = ("invoke_agent agent", [("reused gpt-6-luna", [])])
    tries = [("worker.ask", [("invoke_agent agent", [CHAT])]), ("worker.ask", [reused])]
    assert received().tree() == [("dag_run.replayed", tries)]
    (span,) = [span for span in received().spans if span.name.startswith("reused")]
    assert json.loads(span.attributes["genai.reused_from"])["try_number"] == 1
    assert len(chat_requests(llm)) == 1
    assert sum(received().metrics["genai.calls"].values()) == 1


def test_an_answer_that_is_reused_is_a_span_that_says_so_and_no_call(received, llm):
    def stored(messages: Any, info: Any) -> ModelResponse:
        metadata = {"reused_from": {"run_id": "the-first-run"}}
        return ModelResponse([TextPart("Yes.")], usage=RequestUsage(input_tokens=7), metadata=metadata)

    trace_agents()
    Agent(FunctionModel(stored, model_name="m")).run_sync("?")
    ((_, [(name, [])]),) = received().tree()
    assert name == "reused m"
    (span,) = [span for span in received().spans if span.name == name]
    assert "the-first-run" in span.attributes["genai.reused_from"]
    assert span.attributes["gen_ai.operation.name"] == "reuse"
    assert span.attributes["gen_ai.usage.input_tokens"] == 0


class Labels(BaseModel):
    sentiment: Literal["good", "bad"]


def test_each_text_that_is_asked_without_an_agent_is_one_call_also_if_the_answer_is_not_in_form(received, llm):
    trace_agents()
    asking = Asking(connection_model("pydanticai_default"), PROMPT, Labels)

    async def ask() -> None:
        for text in ("first", "second", "third"):
            await asking.ask(text)

    llm.call_tool("final_result", {"sentiment": "good"}, times=2)
    llm.call_tool("final_result", {"sentiment": "so-so"})
    llm.call_tool("final_result", {"sentiment": "good"})
    asyncio.run(ask())
    repair = ("invoke_agent agent", [("reused gpt-6-luna", []), CHAT])
    assert received().tree() == [("invoke_agent agent", [CHAT]), CHAT, CHAT, repair]
    assert len(chat_requests(llm)) == 4


# Batches, messages, jobs, searches


def test_a_batch_is_a_span_per_chunk_with_its_counts_and_a_sample_of_its_rows(
    received, run_dag, model, storage, monkeypatch
):
    monkeypatch.setenv(TRACED_ROWS, "0.1")
    storage.mkdir()
    (storage / "rows.jsonl").write_text("".join(json.dumps({"text": f"This is review {n}"}) + "\n" for n in range(60)))
    conf = {"input": str(storage_path("rows.jsonl")), "text_column": "text", "id_column": None, "limit": None}
    assert run_dag("batch_inference_at_scale", conf).state == "success"
    spans = received().spans
    chunks = [span for span in spans if span.name == "chunk"]
    assert sum(span.attributes["genai.rows.done"] for span in chunks) == 60
    assert sum(span.attributes["genai.rows.calls"] for span in chunks) == 60
    assert all(span.attributes["genai.rows.failed"] == 0 for span in chunks)
    rows = [span for span in spans if span.parent_id in {chunk.span_id for chunk in chunks}]
    assert 0 < len(rows) < 20
    calls = received().metrics["genai.calls"]
    assert sum(calls.values()) == 60


def test_a_message_is_linked_to_its_senders_trace_which_its_reply_and_its_dead_letter_carry_on(
    received, kafka, model, monkeypatch
):
    monkeypatch.setattr(stream, "LINGER_S", 0.3)
    topic = f"requests-{uuid4().hex}"
    kafka.create_topic(topic)
    trace_id = uuid4().hex
    headers = [("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01".encode()), ("tracestate", b"vendor=1")]
    request = new_request("Hello?")
    kafka.send(topic, [request.model_dump_json().encode(), b"no request"], headers=headers)
    kafka.send(topic, [new_request("Hello?").model_dump_json().encode()], headers=[("traceparent", b"\xff nonsense")])
    asyncio.run(stream.answer_topic(topic, topic, PromptedModel(PROMPT, Labels, 4), 60))

    messages = [span for span in received().spans if span.name == "process message"]
    assert sorted(span.links for span in messages) == [[], [trace_id], [trace_id]]
    outcomes = sorted(span.attributes["genai.message.outcome"] for span in messages)
    assert outcomes == ["answered", "answered", "dead-lettered"]
    replies = {json.loads(each.value())["request_id"]: dict(each.headers() or []) for each in kafka.read(REPLIES)}
    assert replies[request.request_id] == dict(headers)
    (dead,) = [each for each in kafka.read(DEAD_LETTERS) if position(each)[0] == topic]
    assert dict(headers).items() <= dict(dead.headers()).items()


class Process:
    """A process of a task's try, as Airflow runs it: it tells its listeners what begins and ends."""

    def __init__(self, ti_id: str, try_number: int) -> None:
        self.run = SimpleNamespace(
            dag_id="by_hand", run_id="r", start_date=DATE, end_date=DATE + timedelta(hours=1), run_type="manual"
        )
        self.ti = SimpleNamespace(
            id=ti_id, dag_id="by_hand", run_id="r", task_id="work", map_index=-1, try_number=try_number, start_date=DATE
        )
        self.ti.get_template_context = lambda: {"dag_run": self.run}
        self.listener = TaskSpans()
        self.listener.on_task_instance_running(self.ti)


def call_a_model() -> None:
    Agent(FunctionModel(lambda messages, info: ModelResponse([TextPart("Yes.")]), model_name="m")).run_sync("?")


AGENT = ("invoke_agent agent", [("chat m", [])])


@pytest.mark.one_stack
def test_a_try_that_is_killed_leaves_its_calls_in_the_trace_of_the_run(received):
    Process("1", 1)
    call_a_model()  # and then the process is killed: no listener hears of it
    second = Process("2", 2)
    call_a_model()
    second.listener.on_task_instance_success()
    second.listener.on_dag_run_success(second.run)
    spans = received().spans
    assert received().tree() == [("dag_run.by_hand", [("worker.work", [AGENT])]), AGENT]
    assert len({span.trace_id for span in spans}) == 1
    tries = [span.attributes["airflow.task_instance.try_number"] for span in spans if span.name == "chat m"]
    assert tries == [1, 2]
    (orphan,) = [span for span in spans if span.parent_id == f"{attempt_span_id('1'):016x}"]
    assert orphan.name == "invoke_agent agent"


class Wait(PaidJobOperator):
    """A job that is there."""

    service_path = "batches"

    def request(self) -> dict[str, Any]:
        return {}

    def result(self, context: Any, job: Job) -> str:
        return job.status


@pytest.mark.one_stack
def test_a_deferred_task_is_one_try_with_one_span_for_its_job(received, storage):
    created = time.time() - 3600
    job = Job(id="batch_1", status="succeeded", created_at=created)
    event = Outcome(status="ended", job_id=job.id, job=job).model_dump(mode="json")
    submits = Process("1", 1)
    call_a_model()
    submits.listener.before_stopping()  # it is deferred: nothing has ended
    collects = Process("1", 1)
    collects.ti.max_tries = 0
    assert Wait(task_id="work").execute_complete({"ti": collects.ti}, event) == "succeeded"
    assert Wait(task_id="work").execute_complete({"ti": collects.ti}, event) == "succeeded"
    collects.listener.on_task_instance_success()
    collects.listener.on_dag_run_success(collects.run)
    ((_, ((_, below),)),) = received().tree()
    assert sorted(below) == [AGENT, ("job batches", []), ("job batches", [])]
    first, again = (span for span in received().spans if span.name == "job batches")
    assert first.span_id == again.span_id  # tools keep one
    assert first.start == pytest.approx(created * 1e9, rel=1e-9)
    assert first.attributes["airflow.connection.id"] == "openai_default"
    assert first.attributes["genai.job.status"] == "succeeded"


@pytest.mark.one_stack
@pytest.mark.parametrize(("share", "is_kept"), [("0", False), ("1", True)])
def test_the_standard_sampler_keeps_a_run_whole_or_not_at_all(monkeypatch, share, is_kept):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", share)
    own = Telemetry()
    monkeypatch.setattr(listener_module, "telemetry", lambda: own)
    for run_id in ("a", "b", "c"):
        of_run = listener_module.in_run(run_trace_id("dag", run_id, DATE))
        task = own.tracers.get_tracer("tests").start_span("task", of_run)
        assert task.get_span_context().trace_flags.sampled == is_kept
    own.tracers.shutdown()


@pytest.mark.one_stack
def test_where_airflow_traces_its_tasks_itself_agents_join_its_span_and_there_is_no_second_one(received, monkeypatch):
    monkeypatch.setattr(listener_module, "begin_sending", lambda: None)  # as where Airflow 3.3 has set up OpenTelemetry
    with trace.get_tracer("airflow").start_as_current_span("worker.work"):
        process = Process("1", 1)
        call_a_model()
        process.listener.on_task_instance_success()
        process.listener.on_dag_run_success(process.run)
    assert received().tree() == [("worker.work", [AGENT])]
    assert {span.attributes.get("airflow.task_instance.try_number") for span in received().spans} == {None, 1}


@pytest.mark.one_stack
def test_the_page_of_a_run_links_to_the_trace_that_its_tasks_log(received, monkeypatch, caplog):
    monkeypatch.setenv(TRACE_URL, "https://tool/{trace_id}")
    caplog.set_level("INFO")
    process = Process("1", 1)
    call_a_model()
    process.listener.on_task_instance_failed(ValueError())
    link = trace_link(process.run)
    assert {f"https://tool/{span.trace_id}" for span in received().spans} == {link}
    assert link in caplog.text


@pytest.mark.one_stack
def test_a_search_is_a_span_with_its_mode_and_the_number_of_its_hits(received):
    hits = [Hit("1", "a.md", "A", "", 0, "some words", 0.9)]
    collection: Any = SimpleNamespace(search=lambda query, vector: hits)
    assert best_hits(collection, SearchQuery(QUESTION, 3), [0.0], -1.0) == hits
    (span,) = received().spans
    assert span.name == "search KnowledgeBase"
    assert span.attributes["db.operation.name"] == "vector"
    assert span.attributes["db.response.returned_rows"] == 1
    assert QUESTION not in str(span)


# What may go wrong with the tool


def a_telemetry(url: str, monkeypatch: pytest.MonkeyPatch) -> Telemetry:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    found = Telemetry()
    found.tracers.get_tracer("tests").start_span("a span").end()
    return found


@pytest.mark.one_stack
def test_a_tool_that_hangs_is_waited_for_at_most_two_seconds_and_fails_nothing(monkeypatch, caplog):
    assert LONGEST_FLUSH_S == 2.0
    monkeypatch.setattr(sending_module, "LONGEST_FLUSH_S", 0.2)
    with Receiver() as receiver:
        receiver.hangs = True
        a_telemetry(receiver.url, monkeypatch).flush()
        assert receiver.is_held  # it had not answered when the wait was over
    assert "The task continues, but its trace is incomplete" in caplog.text


@pytest.mark.one_stack
@pytest.mark.parametrize("how", ["refuses", "is not there"])
def test_a_tool_that_refuses_or_is_not_there_fails_nothing_and_is_named_once(monkeypatch, caplog, how):
    monkeypatch.setattr(sending_module, "LONGEST_FLUSH_S", 1.0)
    with Receiver() as receiver:
        receiver.status = 401
        if how == "refuses":
            found = a_telemetry(receiver.url.replace("//", "//user:of-the-tool@"), monkeypatch)
        else:
            found = a_telemetry("http://127.0.0.1:9", monkeypatch)
        found.flush()
        found.flush()
    (warning,) = [each for each in caplog.messages if "trace is incomplete" in each]
    assert "127.0.0.1" in warning
    assert "of-the-tool" not in caplog.text


# What is on, and what it costs where it is off


@pytest.mark.one_stack
@pytest.mark.parametrize(
    ("settings", "are_on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://tool"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://tool/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://tool", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://tool", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_standard_variables_alone_turn_traces_on(monkeypatch, settings, are_on):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert traces_are_on() == are_on


@pytest.mark.one_stack
def test_where_traces_are_off_nothing_of_the_sdk_is_imported():
    code = (
        "import sys, plugins.genai_traces, include.ai.model, include.ai.tracing, include.batch.answering, "
        "include.jobs.operator\n"
        "assert plugins.genai_traces.GenAITraces.listeners == []\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.exporter', 'include.traces.s'))])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["['include.traces.settings']"], done.stderr


ZONES = st.sampled_from([UTC, timezone(timedelta(hours=-8)), timezone(timedelta(hours=5, minutes=30))])


@pytest.mark.one_stack
@given(st.text(), st.text(), st.datetimes(timezones=ZONES))
def test_the_ids_of_a_run_are_the_same_in_every_time_zone_and_others_for_another_run(dag_id, run_id, started):
    trace_id = run_trace_id(dag_id, run_id, started)
    assert 0 < trace_id < 2**128
    assert 0 < run_span_id(trace_id) < 2**64
    assert trace_id == run_trace_id(dag_id, run_id, started.astimezone(UTC))
    assert trace_id != run_trace_id(dag_id, f"{run_id}+", started)
    assert trace_id != run_trace_id(dag_id, run_id, None)


@pytest.mark.one_stack
@pytest.mark.parametrize(
    ("template", "url"),
    [
        ("", ""),
        ("https://tool/traces/{trace_id}?all", "https://tool/traces/abc?all"),
        ("https://tool/traces/", ""),
        ("javascript:alert({trace_id})", ""),
    ],
)
def test_the_url_of_a_trace_comes_from_a_template(monkeypatch, template, url):
    monkeypatch.setenv(TRACE_URL, template)
    assert trace_url("abc") == url
