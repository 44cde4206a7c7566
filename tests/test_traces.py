"""Traces (`include.traces`): what arrives at a tool by OTLP, of real tasks on either SDK."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk import dag, task

from include.ai import llm_kwargs, untrusted
from include.ai.agents import agent_kwargs
from tests.conftest import KEY
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
    from pydantic_ai import Agent
    from pydantic_ai.embeddings import Embedder

    with Receiver() as receiver, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        patch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer of-the-tool")
        patch.setenv("OTEL_SERVICE_NAME", "tests")
        from include.traces.listener import TaskSpans
        from include.traces.sending import telemetry

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
def received(sending: Receiver) -> Callable[[], Receiver]:
    """Return what has arrived since the test began."""
    from include.traces.sending import telemetry

    telemetry().flush()
    sending.forget()

    def now() -> Receiver:
        telemetry().flush()
        return sending

    return now


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
