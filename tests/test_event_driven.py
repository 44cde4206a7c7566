"""The DAGs that wait for messages, on a real Airflow with a real broker."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from llmock.scenarios import Reply, ToolCall

from include.messages.contract import DEAD_LETTERS, EVENT_REQUESTS, REPLIES, STREAM_REQUESTS, new_request
from local.send import send
from local.sqs_server import sqs_client
from tests.hostile_messages import HOSTILE
from tests.kafka import Broker, position
from tests.stack import RunningAirflow, local, wait_until


@pytest.fixture
def queue(airflow: RunningAirflow) -> Broker:
    """The broker of the running stack."""
    return Broker((airflow.home / "broker").read_text(), "the embedded broker")


def replies(queue: Broker, ids: list[str]) -> list[dict[str, Any]]:
    found = [json.loads(message.value()) for message in queue.read(REPLIES)]
    return [reply for reply in found if reply["request_id"] in ids]


def ask(queue: Broker, topic: str, texts: list[str]) -> list[str]:
    requests = [new_request(text) for text in texts]
    for request in requests:
        queue.send(topic, [request.model_dump_json().encode()], key=request.request_id)
    return [request.request_id for request in requests]


@pytest.mark.needs_dags("event_driven_inference", "stream_inference")
def test_messages_start_runs_that_answer_them_and_hostile_ones_hold_nobody_up(airflow, queue):
    event_ids = ask(queue, EVENT_REQUESTS, ["My invoice is wrong."])
    queue.send(EVENT_REQUESTS, [HOSTILE["NaN"], HOSTILE["a tombstone"], HOSTILE["a NUL in the text"]])
    event_ids += ask(queue, EVENT_REQUESTS, ["The app does not start."])
    queue.send(STREAM_REQUESTS, [HOSTILE["NaN"], HOSTILE["no JSON"], HOSTILE["5 MB"]])
    stream_ids = ask(queue, STREAM_REQUESTS, ["My invoice is wrong.", "The app does not start.", "I cannot log in."])

    wait_until(lambda: len(replies(queue, stream_ids)) == 3)
    wait_until(lambda: len(replies(queue, event_ids)) == 2)
    assert {reply["answer"]["category"] for reply in replies(queue, event_ids + stream_ids)} <= {
        "billing",
        "technical",
        "account",
    }
    dead = [each for each in queue.read(DEAD_LETTERS) if position(each)[0] == STREAM_REQUESTS]
    assert {each.value() for each in dead} >= {HOSTILE["NaN"], HOSTILE["no JSON"], HOSTILE["5 MB"]}
    assert airflow.health()["triggerer"] == "healthy"
    log = (airflow.home / "logs" / "triggerer.log").read_text()
    assert f"<message of {EVENT_REQUESTS}[" in log, "the events are not where this test looks"
    assert "My invoice is wrong." not in log


@pytest.mark.needs_dags("stream_inference", "dead_letters")
def test_the_dead_letters_are_counted(airflow, queue):
    queue.send(STREAM_REQUESTS, [b"hello"])
    known = lambda: [each for each in queue.read(DEAD_LETTERS) if each.value() == b"hello"]  # noqa: E731
    wait_until(known)
    run_id = airflow.finish("dead_letters")

    result = airflow.xcom("dead_letters", run_id, "count_or_replay", "return_value")
    assert any("Invalid JSON" in reason for reason in result["reasons"])


@pytest.mark.needs_dags("stream_inference")
def test_the_command_sends_requests_and_shows_the_replies(airflow):
    sent = local("send", "--number", "3", home=airflow.home)

    assert sent.returncode == 0, sent.stderr
    assert sent.stdout.count('"category"') == 3


@pytest.mark.needs_dags("sqs_inference")
def test_messages_on_sqs_start_runs_that_reply_to_them_and_then_delete_them(airflow):
    requests = (airflow.home / "queue").read_text()
    client = sqs_client(requests)
    names = [
        "ApproximateNumberOfMessages",
        "ApproximateNumberOfMessagesNotVisible",
        "ApproximateNumberOfMessagesDelayed",
    ]

    def on_the_queue() -> int:
        found = client.get_queue_attributes(QueueUrl=requests, AttributeNames=names)
        return sum(map(int, found["Attributes"].values()))

    for body in (HOSTILE["NaN"], HOSTILE["a NUL in the text"]):
        client.send_message(QueueUrl=requests, MessageBody=body.decode())
    sent = local("send", "--number", "3", "--dag", "sqs_inference", home=airflow.home)

    assert sent.returncode == 0, sent.stderr
    assert sent.stdout.count('"category"') == 3
    wait_until(lambda: on_the_queue() == 0)
    dead = client.receive_message(QueueUrl=f"{requests}-dead-letters", MaxNumberOfMessages=10)["Messages"]
    assert {each["Body"].encode() for each in dead} >= {HOSTILE["NaN"], HOSTILE["a NUL in the text"]}


def test_the_command_says_that_no_stack_is_running(tmp_path):
    nothing = local("send", home=tmp_path)
    assert nothing.returncode != 0
    assert "make start" in nothing.stderr


@pytest.mark.one_stack
@pytest.mark.needs_dags("stream_inference")
def test_a_backlog_larger_than_the_time_budget_is_answered_by_the_successor(airflow, queue):
    ids = ask(queue, STREAM_REQUESTS, [f"Question {number}" for number in range(6)])
    run_id = airflow.trigger("stream_inference", {"budget_s": 1})
    airflow.succeeds("stream_inference", run_id)
    wait_until(lambda: len(replies(queue, ids)) == 6)


def test_a_broker_that_the_command_cannot_reach_is_named():
    from local.processes import StackError, free_ports

    (nobody,) = free_ports(1)
    with pytest.raises(StackError, match="The broker did not take the messages"):
        send({"bootstrap.servers": f"127.0.0.1:{nobody}", "delivery.timeout.ms": 1000}, "any", 1)


@pytest.fixture
def start_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Start each run of `event_driven_inference` by so many messages, and send no replies but count them."""

    def start(number: int) -> None:
        place = {"topic": "any", "partition": 0, "error": None}
        payloads = [{**place, "offset": n, "request": new_request("Hi.").model_dump()} for n in range(number)]
        events = [SimpleNamespace(timestamp=n, extra={"payload": payload}) for n, payload in enumerate(payloads)]
        monkeypatch.setattr("include.common.asset_events.triggering_events", lambda *assets: events)
        counted = lambda _, requests, answers: (len(list(filter(None, answers))), ["the others"])  # noqa: E731
        monkeypatch.setattr("include.messages.kafka.events.send_replies", counted)

    return start


def test_a_run_that_cannot_map_its_requests_fails(run_dag, storage, logged, start_by):
    start_by(1025)
    run = run_dag("event_driven_inference")

    assert "1025 items are too many" in logged()
    assert run.states()["reply"] == "upstream_failed"
    assert run.state == "failed"


def test_a_run_without_a_request_is_skipped_to_its_end(run_dag, storage, start_by):
    start_by(0)
    run = run_dag("event_driven_inference")

    assert set(run.states().values()) == {"skipped"}
    assert run.state == "success"


@pytest.mark.parametrize("answered", [0, 1])
def test_answers_that_fail_keep_no_reply_from_being_sent(run_dag, llm, start_by, answered):
    start_by(2)
    for _ in range(answered):
        llm.add(Reply(tool_calls=(ToolCall("final_result", {"category": "technical", "summary": "A greeting."}),)))
    llm.add(Reply(text="{}", times=None))
    run = run_dag("event_driven_inference")

    assert run.xcom("reply")["result"] == f"{answered} answered; failed: the others"
