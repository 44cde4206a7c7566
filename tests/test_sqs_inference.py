"""`include.messages.sqs` and the trigger before it, against moto's server: a fake of Amazon SQS, over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from pydantic import BaseModel

from include.messages import sqs as sqs_inference
from include.messages.contract import new_request
from include.messages.model import PromptedModel
from include.messages.refusals import Refused
from include.messages.sqs import Queues, answer_messages, messages_of
from include.messages.stored import fetch
from local.processes import free_ports
from local.sqs_server import queue_url, sqs_client, sqs_connection
from tests.hostile_messages import HOSTILE
from tests.scripted_model import ANSWER
from tests.storages import on_storage

pytestmark = pytest.mark.one_stack

VISIBILITY_S = 60


class Triage(BaseModel):
    category: Literal["billing", "technical", "account"]
    summary: str


def _sendable() -> dict[str, str]:
    """The hostile messages that SQS takes at all: 1 to 1,048,576 bytes of UTF-8."""
    found = {}
    for name, value in HOSTILE.items():
        try:
            body = (value or b"").decode()
        except UnicodeDecodeError:
            continue
        if 0 < len(body) <= 2**20:
            found[name] = body
    return found


SENDABLE = _sendable()


class Queue:
    """A queue of requests of one test's own, with what comes of them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = sqs_client(url)

    def send(self, *bodies: str) -> None:
        for body in bodies:
            self.client.send_message(QueueUrl=self.url, MessageBody=body)

    def ask(self, *texts: str, **options: Any) -> list[str]:
        requests = [new_request(text, **options) for text in texts]
        self.send(*(request.model_dump_json() for request in requests))
        return [request.request_id for request in requests]

    def events(self) -> list[Any]:
        """What the trigger of the DAG makes of all that is visible on the queue."""
        from airflow.providers.common.messaging.triggers.msg_queue import MessageQueueTrigger

        trigger = MessageQueueTrigger(
            scheme="sqs",
            sqs_queue=self.url,
            delete_message_on_reception=False,
            visibility_timeout=VISIBILITY_S,
            max_messages=10,
            wait_time_seconds=1,
        )

        async def poll() -> Any:
            return await anext(trigger.run())

        found = []
        while self.visible():
            payload = json.loads(json.dumps(asyncio.run(poll()).payload))  # as it is stored in the database
            found.append(SimpleNamespace(extra={"payload": payload}, timestamp=datetime.now(UTC)))
        return found

    def run(self, events: list[Any] | None = None, backlog: bool = False) -> dict[str, int]:
        """The numbers that a run tells."""
        messages = messages_of(self.events() if events is None else events)
        model = PromptedModel("Sort it.", Triage, 16)
        done = asyncio.run(answer_messages(self.url, self.folder, model, messages))
        assert done.pop("backlog") is backlog
        return done

    @property
    def folder(self) -> str:
        return self.url.rpartition("/")[2]

    def _number(self, attribute: str) -> int:
        found = self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=[attribute])
        return int(found["Attributes"][attribute])

    def visible(self) -> int:
        return self._number("ApproximateNumberOfMessages")

    def in_flight(self) -> int:
        """Messages that were received, are not deleted, and will come back."""
        return self._number("ApproximateNumberOfMessagesNotVisible")

    def bring_back(self, events: list[Any]) -> None:
        """As if the visibility timeout of these messages were over."""
        for message in messages_of(events):
            self.client.change_message_visibility(QueueUrl=self.url, ReceiptHandle=message.receipt, VisibilityTimeout=0)

    def _all(self, suffix: str) -> list[Any]:
        found: list[Any] = []
        while batch := self.client.receive_message(
            QueueUrl=self.url + suffix, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages"):
            found += batch
        return found

    def replies(self) -> list[dict[str, Any]]:
        return [json.loads(message["Body"]) for message in self._all("-replies")]

    def dead(self) -> dict[str, str]:
        """Reason by body."""
        return {each["Body"]: each["MessageAttributes"]["reason"]["StringValue"] for each in self._all("-dead-letters")}


@pytest.fixture
def queue(sqs: str, model: Any, storage: Any) -> Queue:
    return Queue(sqs)


def test_each_request_is_answered_replied_to_and_deleted(queue, model):
    ids = queue.ask("The app is down.", "Where is my invoice?", echo="\uffff queue 3")

    assert queue.run() == {"answered": 2}
    replies = queue.replies()
    assert sorted(reply["request_id"] for reply in replies) == sorted(ids)
    assert all(reply["answer"] == ANSWER and reply["echo"] == "\uffff queue 3" for reply in replies)
    assert (queue.visible(), queue.in_flight()) == (0, 0)
    assert queue.dead() == {}


def test_messages_of_many_events_are_answered_by_one_run(queue, model):
    queue.ask(*(f"Question {number}" for number in range(25)))
    events = queue.events()

    assert len(events) >= 3
    assert queue.run(events) == {"answered": 25}
    assert max(call["in_flight"] for call in model.seen()) > 1
    assert queue.in_flight() == 0


def test_a_run_knows_that_an_event_was_left_without_a_run_and_its_successor_reads_it(queue):
    queue.ask("Hello?")
    stranded = queue.events()
    queue.ask("Is anybody there?")

    assert queue.run(backlog=True) == {"answered": 1}
    ring = SimpleNamespace(extra={}, timestamp=datetime.now(UTC))
    assert queue.run([*stranded, ring]) == {"answered": 1}
    assert messages_of([ring]) == []


def test_a_message_stays_on_the_queue_until_a_run_has_deleted_it(queue):
    queue.ask("Hello?")
    lost = queue.events()  # the triggerer is killed before the event is stored

    assert (queue.visible(), queue.in_flight()) == (0, 1)
    queue.bring_back(lost)
    assert queue.run() == {"answered": 1}


@pytest.mark.parametrize("name", SENDABLE)
def test_a_hostile_message_alone_is_a_dead_letter_as_it_came(queue, model, name):
    queue.send(SENDABLE[name])

    assert queue.run() == {"dead-lettered": 1}
    ((body, reason),) = queue.dead().items()
    assert (body, bool(reason)) == (SENDABLE[name], True)
    assert (queue.visible(), queue.in_flight()) == (0, 0)
    assert not model.calls()


def test_hostile_messages_all_at_once_keep_no_good_one_up(queue):
    assert len(SENDABLE) >= 20
    queue.send(*SENDABLE.values())
    (good,) = queue.ask("Hello?")

    assert queue.run() == {"dead-lettered": len(SENDABLE), "answered": 1}
    assert queue.dead().keys() == set(SENDABLE.values())
    assert [reply["request_id"] for reply in queue.replies()] == [good]


@pytest.mark.parametrize(
    "body", [value for value in HOSTILE.values() if value], ids=[n for n, v in HOSTILE.items() if v]
)
def test_a_body_that_another_server_lets_through_harms_nobody(body):
    """What moto and AWS refuse to store, as text with lone surrogates in the place of what is no UTF-8."""
    text = body.decode("utf-8", "surrogateescape")
    (message,) = messages_of([event({"MessageId": "m", "ReceiptHandle": "r", "Body": text})])

    request, reason = sqs_inference.read_request(message.content)
    assert request is None
    assert reason


@on_storage("disk", "s3")
def test_a_message_that_is_delivered_twice_is_paid_once_and_gets_the_same_reply(queue, model):
    queue.ask("Hello?")
    first = queue.events()
    queue.run(first)
    queue.run(first)  # as a retry does after a crash between the reply and the end of the task

    assert model.calls()["Hello?"] == 1
    one, other = queue.replies()
    assert one == other


def test_a_request_that_is_sent_twice_gets_one_reply(queue, model):
    queue.ask("Hello?", "Hello?", request_id="once")

    assert queue.run() == {"answered": 1, "repeated": 1}
    assert len(queue.replies()) == 1
    assert model.calls()["Hello?"] == 1
    assert queue.in_flight() == 0


def test_two_deliveries_of_one_message_in_one_run_are_one_message_with_the_newest_receipt(queue, model):
    queue.ask("Hello?")
    events = queue.events()
    queue.bring_back(events)
    events += queue.events()

    assert queue.run(events) == {"answered": 1}
    assert messages_of(events)[0].receipt == events[-1].extra["payload"]["message_batch"][0]["ReceiptHandle"]
    assert queue.in_flight() == 0


def test_an_id_that_comes_again_with_another_text_does_not_get_the_answer_of_the_first(queue):
    queue.ask("Hello?", "What is my neighbour's bill?", request_id="mine")

    assert queue.run() == {"answered": 1, "dead-lettered": 1}
    assert "used for another text" in next(iter(queue.dead().values()))


def test_a_text_that_the_model_never_answers_is_a_dead_letter(queue, model):
    model.script(faults={"poison": 422})
    queue.ask("poison", "Hello?")

    assert queue.run() == {"answered": 1, "dead-lettered": 1}
    assert "no answer in 3 tries" in next(iter(queue.dead().values()))


def test_a_request_that_wants_no_reply_is_answered_and_deleted(queue, model):
    queue.ask("Hello?", wanted=False)

    assert queue.run() == {"answered": 1}
    assert (queue.replies(), queue.in_flight()) == ([], 0)


def test_a_refused_key_fails_the_run_and_leaves_every_message_on_the_queue(queue, model):
    model.script(faults={"": 401})
    queue.ask("Hello?", "Is anybody there?")
    events = queue.events()

    with pytest.raises(AirflowFailException, match="pydanticai_default"):
        queue.run(events)
    assert queue.in_flight() == 2
    assert queue.dead() == {}
    model.script()
    queue.bring_back(events)
    assert queue.run() == {"answered": 2}


@pytest.mark.parametrize("method", ["reply", "settle"])
def test_a_run_that_fails_before_its_delete_leaves_the_message_and_the_next_pays_nothing(
    queue, model, monkeypatch, method
):
    def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    queue.ask("Hello?")
    events = queue.events()
    with monkeypatch.context() as patch:
        patch.setattr(Queues, method, killed)
        with pytest.raises(RuntimeError):
            queue.run(events)
    assert queue.in_flight() == 1
    queue.bring_back(events)

    assert queue.run() == {"answered": 1}
    assert model.calls()["Hello?"] == 1
    assert queue.replies()
    assert queue.in_flight() == 0


@pytest.mark.parametrize("suffix", ["-replies", "-dead-letters"])
def test_a_missing_queue_is_named_before_anything_is_paid_and_nothing_is_deleted(queue, model, suffix):
    queue.client.delete_queue(QueueUrl=queue.url + suffix)
    queue.ask("Hello?")
    queue.send("no JSON")

    with pytest.raises(AirflowException, match=f"'aws_default', queue {queue.url}{suffix}: .*Does the queue exist"):
        queue.run()
    assert queue.in_flight() == 2
    assert not model.calls()


def limit(queue, suffix, size):
    queue.client.set_queue_attributes(QueueUrl=queue.url + suffix, Attributes={"MaximumMessageSize": str(size)})


@pytest.mark.parametrize("size", [1024, 2000, 2**20])
def test_a_message_that_is_too_large_for_the_dead_letters_is_on_storage_whole(queue, size):
    limit(queue, "-dead-letters", size)
    value = "\u00e9" * (size // 2)  # as large as allowed, and no room for the reason
    queue.send("no JSON")
    queue.send(value)
    queue.ask("Hello?")

    assert queue.run() == {"answered": 1, "dead-lettered": 2}
    assert (queue.visible(), queue.in_flight()) == (0, 0)
    (pointer,) = queue.dead().keys() - {"no JSON"}
    assert fetch(pointer).value == value.encode()
    assert json.loads(pointer)["value_bytes"] == size


def test_a_reply_that_is_too_large_is_a_dead_letter_and_is_sent_later_at_no_cost(queue, model):
    limit(queue, "-replies", 1024)
    ids = queue.ask("Hello?", echo="\u00e9" * 400) + queue.ask("Hi!")
    assert queue.run() == {"answered": 1, "dead-lettered": 1}
    ((body, reason),) = queue.dead().items()
    assert "its reply is too large" in reason
    assert [reply["request_id"] for reply in queue.replies()] == ids[1:]

    limit(queue, "-replies", 10_000)
    queue.send(body)
    assert queue.run() == {"answered": 1}
    assert ids[0] in [reply["request_id"] for reply in queue.replies()]
    assert model.calls() == {"Hello?": 1, "Hi!": 1}


def test_a_dead_letter_that_is_refused_stays_and_the_others_are_done(queue, monkeypatch):
    queue.send("x", "no JSON")
    queue.ask("Hello?")
    with monkeypatch.context() as patch:
        send = Queues._send

        def refuse(queues, ending, body, attributes):
            if body == "x":
                raise Refused("not this one")
            send(queues, ending, body, attributes)

        patch.setattr(Queues, "_send", refuse)
        with pytest.raises(AirflowException, match="not this one"):
            queue.run()
    assert queue.in_flight() == 1
    assert queue.dead().keys() == {"no JSON"}
    assert len(queue.replies()) == 1


def test_what_the_time_is_too_short_for_is_left_on_the_queue(queue, model, monkeypatch):
    monkeypatch.setattr(sqs_inference, "BUDGET_S", -1)
    queue.ask("Hello?", "Is anybody there?")

    assert queue.run() == {"left": 2}
    assert queue.in_flight() == 2
    assert not model.calls()


def test_a_server_that_is_down_is_one_error_that_names_queue_and_connection(monkeypatch):
    url = queue_url(free_ports(1)[0])
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", with_few_tries(sqs_connection(url)))
    with pytest.raises(AirflowException, match=f"'aws_default', queue {url}: .*Nothing is lost"):
        Queues(url)


def test_refused_credentials_are_one_error_that_names_queue_and_connection(queue, monkeypatch):
    from botocore.exceptions import ClientError

    def refuse(*_: Any, **__: Any) -> None:
        raise ClientError({"Error": {"Code": "InvalidClientTokenId", "Message": "The token is invalid"}}, "SendMessage")

    monkeypatch.setattr("botocore.client.BaseClient._make_api_call", refuse)
    with pytest.raises(AirflowException, match=f"'aws_default', queue {queue.url}: .*InvalidClientTokenId.*this role"):
        Queues(queue.url)


def test_a_connection_without_a_region_is_one_error_that_names_it(monkeypatch):
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", '{"conn_type": "aws"}')
    with pytest.raises(AirflowException, match=r"'aws_default'.*region"):
        Queues("https://sqs.eu-central-1.amazonaws.com/123456789012/requests")


def test_a_worker_that_does_not_know_the_queue_says_which_setting_it_lacks():
    with pytest.raises(AirflowFailException, match="GENAI_SQS_QUEUE is not set for this worker"):
        Queues("")


def event(*messages: Any) -> Any:
    return SimpleNamespace(extra={"payload": {"message_batch": list(messages)}}, timestamp=datetime.now(UTC))


@pytest.mark.parametrize(
    "extra",
    [
        {"payload": None},
        {"payload": {"message_batch": "text"}},
        {"payload": {"message_batch": [None]}},
        {"payload": {"message_batch": [{"MessageId": 1, "ReceiptHandle": "", "Body": None}]}},
    ],
)
def test_an_event_that_is_none_of_the_watchers_is_left_out_and_named(extra, caplog):
    when = datetime.now(UTC)
    good = {"MessageId": "m", "ReceiptHandle": "r", "Body": "b"}

    assert len(messages_of([SimpleNamespace(extra=extra, timestamp=when), event(good)])) == 1
    assert str(when) in caplog.text


def test_a_receipt_that_sqs_does_not_know_fails_nobody(queue, caplog):
    body = new_request("Hello?").model_dump_json()
    forged = event({"MessageId": "forged", "ReceiptHandle": "forged", "Body": body})

    assert queue.run([forged]) == {"answered": 1}
    assert "was not deleted" in caplog.text


def with_few_tries(connection: str) -> str:
    fields = json.loads(connection)
    fields["extra"]["config_kwargs"] = {"retries": {"total_max_attempts": 1}}
    return json.dumps(fields)


@pytest.fixture
def load_with_queue(load_dag: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    def load(url: str) -> Any:
        monkeypatch.setenv("GENAI_SQS_QUEUE", url)
        return load_dag("sqs_inference")

    return load


def test_without_a_queue_nothing_is_watched_and_a_run_by_hand_says_so(run_dag, load_dag, monkeypatch):
    monkeypatch.delenv("GENAI_SQS_QUEUE", raising=False)
    (asset,) = watched(load_dag("sqs_inference"))

    assert asset.watchers == []
    assert set(run_dag("sqs_inference").states().values()) == {"skipped"}


def test_the_trigger_knows_the_queue_and_the_connection_but_no_secret(load_with_queue, queue):
    (asset,) = watched(load_with_queue(queue.url))
    ((path, settings),) = [watcher.trigger.serialize() for watcher in asset.watchers]

    assert path == "airflow.providers.amazon.aws.triggers.sqs.SqsSensorTrigger"
    assert settings["sqs_queue"] == queue.url
    assert settings["aws_conn_id"] == "aws_default"
    assert settings["delete_message_on_reception"] is False
    assert settings["visibility_timeout"] == 600


def watched(dag: Any) -> list[Any]:
    return list(dag.get_task("call_successor").outlets)
