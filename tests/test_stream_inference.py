"""`include.messages.kafka.stream` against a real broker: what is answered, dead-lettered and committed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from pydantic import BaseModel

from include.messages.contract import DEAD_LETTERS, REPLIES, new_request
from include.messages.kafka import dead_letters, stream
from include.messages.kafka.reader import Reader
from include.messages.kafka.stream import Topics, answer_topic
from include.messages.model import PromptedModel
from local.processes import free_ports
from tests.hostile_messages import HOSTILE
from tests.kafka import Broker, position
from tests.scripted_model import ANSWER
from tests.stack import wait_until
from tests.storages import on_storage

pytestmark = pytest.mark.one_stack


class Triage(BaseModel):
    category: Literal["billing", "technical", "account"]
    summary: str


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LINGER_S", 0.3)


class Topic:
    """A topic of requests of one test's own, with what comes of them."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.name = self.group = f"requests-{uuid4().hex}"
        broker.create_topic(self.name, 2, **{"max.message.bytes": str(8 * 2**20)})

    def send(self, *values: bytes | None, partition: int = 0, **record: Any) -> None:
        self.broker.send(self.name, values, partition=partition, **record)

    def ask(self, *texts: str, partition: int = 0, **options: Any) -> list[str]:
        requests = [new_request(text, **options) for text in texts]
        self.send(*(request.model_dump_json().encode() for request in requests), partition=partition)
        return [request.request_id for request in requests]

    async def answer(self, budget_s: float = 60, in_flight: int = 16) -> dict[str, Any]:
        return await answer_topic(
            self.name, self.group, PromptedModel("Sort the message.", Triage, in_flight), budget_s
        )

    def run(self, **options: Any) -> dict[str, Any]:
        return asyncio.run(self.answer(**options))

    def replies(self, *ids: str) -> list[dict[str, Any]]:
        found = [json.loads(message.value()) for message in self.broker.read(REPLIES)]
        return [reply for reply in found if reply["request_id"] in ids]

    def dead(self) -> list[Any]:
        return [each for each in self.broker.read(DEAD_LETTERS) if position(each)[0] == self.name]

    def committed(self) -> dict[int, int]:
        return self.broker.committed(self.group, self.name)


@pytest.fixture
def topic(kafka: Broker, model: Any) -> Topic:
    return Topic(kafka)


def test_each_request_gets_its_reply_and_is_committed(topic, model):
    ids = topic.ask("The app is down.", "Where is my invoice?", echo="queue 3") + topic.ask("Hi!", partition=1)
    done = topic.run()

    assert done == {"answered": 3, "backlog": False}
    replies = topic.replies(*ids)
    assert sorted(reply["request_id"] for reply in replies) == sorted(ids)
    assert {reply["echo"] for reply in replies} == {"queue 3", ""}
    assert all(reply["answer"] == ANSWER for reply in replies)
    assert topic.committed() == {0: 2, 1: 1}
    assert topic.run() == {"backlog": False}


def test_each_hostile_message_is_a_dead_letter_as_it_came_and_keeps_nothing_up(topic, model):
    good = []
    for value in HOSTILE.values():
        topic.send(value, key=b"\xff key", headers=[("trace", b"\xff\x00")])
        good += topic.ask("Hello?")
    many = len(HOSTILE.values())
    assert topic.run() == {"dead-lettered": many, "answered": many, "backlog": False}

    dead = {position(each)[1:]: each for each in topic.dead()}
    assert dead.keys() == {(0, 2 * number) for number in range(many)}
    for number, value in enumerate(HOSTILE.values()):
        letter = dead[0, 2 * number]
        assert (letter.value() or b"") == (value or b"")
        assert letter.key() == b"\xff key"
        assert dict(letter.headers())["trace"] == b"\xff\x00"
        assert dead_letters.reason(letter)
    assert sorted(reply["request_id"] for reply in topic.replies(*good)) == sorted(good)
    assert topic.committed() == {0: 2 * many}


@pytest.mark.parametrize("value", [None, b""])
def test_an_empty_message_alone_is_a_dead_letter(topic, model, value):
    topic.send(value)

    assert topic.run() == {"dead-lettered": 1, "backlog": False}
    assert [position(dead)[2] for dead in topic.dead()] == [0]
    assert topic.committed() == {0: 1}


def test_ten_hostile_messages_in_a_row(topic, model):
    topic.send(*list(HOSTILE.values())[:10])
    (good,) = topic.ask("Hello?")

    assert topic.run() == {"dead-lettered": 10, "answered": 1, "backlog": False}
    assert len(topic.replies(good)) == 1
    assert {position(dead)[2] for dead in topic.dead()} == set(range(10))


def test_a_request_that_comes_twice_is_answered_and_paid_once(topic, model):
    topic.ask("Hello?", request_id="once-" + topic.name)
    topic.run()
    topic.ask("Hello?", "Hello?", request_id="once-" + topic.name)

    assert topic.run() == {"repeated": 2, "backlog": False}
    assert len(topic.replies("once-" + topic.name)) == 1
    assert model.calls()["Hello?"] == 1


def test_an_id_that_comes_again_with_another_text_does_not_get_the_answer_of_the_first(topic, model):
    topic.ask("Hello?", "What is my neighbour's bill?", request_id="mine-" + topic.name)

    assert topic.run() == {"answered": 1, "dead-lettered": 1, "backlog": False}
    assert "used for another text" in dead_letters.reason(topic.dead()[0])


@on_storage("s3")
def test_a_request_that_wants_no_reply_is_answered_and_stored_only(topic, model, storage):
    (request_id,) = topic.ask("Hello?", wanted=False)

    assert topic.run()["answered"] == 1
    assert topic.replies(request_id) == []
    (stored,) = storage.glob(f"{topic.group}/answers/*/*.json")
    assert json.loads(stored.read_text())["answer"] == ANSWER


def test_a_run_that_dies_before_its_commit_is_repeated_at_no_cost_with_the_same_replies(topic, model, monkeypatch):
    ids = topic.ask(*(f"Question {number}" for number in range(20)))
    with monkeypatch.context() as patch:
        patch.setattr(Reader, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            topic.run()
    assert topic.committed() == {}
    assert topic.run() == {"answered": 20, "backlog": False}

    assert topic.committed() == {0: 20}
    assert set(model.calls().values()) == {1}
    replies = Counter(json.dumps(reply) for reply in topic.replies(*ids))
    assert sorted(json.loads(reply)["request_id"] for reply in replies) == sorted(ids)
    assert set(replies.values()) == {2}


def test_an_answer_that_was_stored_but_not_sent_is_sent_by_the_next_run(topic, model, monkeypatch):
    ids = topic.ask(*(f"Question {number}" for number in range(20)))
    with monkeypatch.context() as patch:
        sent = []
        reply = Topics.reply

        async def half(topics: Topics, *what: Any) -> None:
            if len(sent) == 10:
                raise AirflowException("The worker has no memory left.")
            sent.append(what)
            await reply(topics, *what)

        patch.setattr(Topics, "reply", half)
        with pytest.raises(AirflowException, match="no memory"):
            topic.run()
    topic.run()

    assert set(model.calls().values()) == {1}
    assert {reply["request_id"] for reply in topic.replies(*ids)} == set(ids)


def test_what_is_not_the_messages_fault_dead_letters_and_commits_nothing_and_heals(topic, model):
    (request_id,) = topic.ask("Hello?")
    for status in (400, 401, 402, 404, 429, 500, 503):
        model.script(faults={"": status})
        with pytest.raises(AirflowException, match="pydanticai_default") as raised:
            topic.run()
        assert isinstance(raised.value, AirflowFailException) == (status in (400, 401, 402, 404))
        assert topic.committed() == {}

    model.script()
    assert topic.run() == {"answered": 1, "backlog": False}
    assert len(topic.replies(request_id)) == 1
    assert topic.dead() == []


def test_a_text_that_the_model_never_answers_is_a_dead_letter_while_others_are_answered(topic, model):
    model.script(faults={"rude": 400, "long": 413, "strange": 500})
    topic.ask("One", "rude", "Two", "long", "strange", "Three")

    assert topic.run() == {"answered": 3, "dead-lettered": 3, "backlog": False}
    reasons = {position(each)[2]: dead_letters.reason(each) for each in topic.dead()}
    assert "refuses it" in reasons[1]
    assert "refuses it" in reasons[3]
    assert "fails on it" in reasons[4]
    assert model.answered().keys() >= {"One", "Two", "Three"}


def test_a_key_that_is_refused_in_mid_batch_commits_what_is_done_up_to_there(topic, model):
    model.script(faults={"Three": 401})
    topic.ask("One", "Two", "Three", "Four", "Five")
    with pytest.raises(AirflowFailException, match="key was refused"):
        topic.run(in_flight=1)
    assert topic.committed() == {0: 2}
    paid = model.answered()

    model.script()
    assert topic.run() == {"answered": 3, "backlog": False}
    assert topic.dead() == []
    paid += model.answered()
    assert {paid[text] for text in ("One", "Two", "Three", "Four", "Five")} == {1}


def test_a_dead_letter_that_the_broker_refuses_is_not_committed_past(topic, model, limits, monkeypatch):
    full = small(limits, 200)
    topic.ask("One")
    topic.send(b"x" * 1000)
    topic.ask("Two")
    with monkeypatch.context() as patch:
        patch.setattr(stream, "DEAD_LETTERS", full)
        with pytest.raises(AirflowException, match=f"topic '{full}' did not take a message.*It stays where it was"):
            topic.run()
        assert topic.committed() == {0: 1}

    assert topic.run() == {"dead-lettered": 1, "answered": 1, "backlog": False}
    assert model.calls() == {"One": 1, "Two": 1}


@pytest.fixture
def limits(kafka: Broker) -> Broker:
    """A broker that keeps to the limits of its topics."""
    if not kafka.keeps_limits:
        pytest.skip("the embedded broker takes messages of any size")
    return kafka


def small(broker: Broker, limit: int = 20_000) -> str:
    """A topic of batches of so many bytes."""
    name = f"small-{uuid4().hex}"
    broker.create_topic(name, **{"max.message.bytes": str(limit)})
    return name


def noise(seed: int, size: int) -> bytes:
    """Bytes that cannot be compressed."""
    return random.Random(seed).randbytes(size)  # noqa: S311


def send_large(topic: Topic, value: bytes) -> None:
    """Send what fits the topic only compressed, and better than this project does it."""
    topic.broker.send(topic.name, [value], settings={"compression.type": "zstd", "compression.level": 12}, partition=0)


def test_a_message_that_fits_its_topic_only_compressed_keeps_nothing_up(topic, model, kafka):
    one_mb = f"requests-{uuid4().hex}"
    kafka.create_topic(one_mb, 2, **{"max.message.bytes": str(2**20)})
    topic.name = one_mb
    ids = topic.ask("One")
    for megabytes in (3, 17):
        send_large(topic, b"x" * megabytes * 2**20)
    ids += topic.ask("Two")

    assert topic.run() == {"answered": 2, "dead-lettered": 2, "backlog": False}
    assert topic.committed() == {0: 4}
    assert [len(each.value()) for each in topic.dead()] == [3 * 2**20, 17 * 2**20]
    assert {reply["request_id"] for reply in topic.replies(*ids)} == set(ids)
    assert dead_letters.replay(DEAD_LETTERS)[1] == {}
    assert topic.run() == {"dead-lettered": 2, "backlog": False}


def test_a_message_that_cannot_be_decompressed_is_a_dead_letter_by_its_position_and_keeps_nothing_up(
    topic, model, kafka, monkeypatch
):
    letters = small(kafka, 2**20)
    monkeypatch.setattr(stream, "DEAD_LETTERS", letters)
    one_batch = {"compression.type": "zstd", "linger.ms": 1000, "batch.size": 10 * 2**20}
    ids = topic.ask("One")
    send_large(topic, b"x" * 5 * 2**20)
    ids += topic.ask("Two")
    kafka.send(topic.name, [b"x" * 2 * 2**20] * 2, settings=one_batch, partition=0)
    ids += topic.ask("Three")
    with monkeypatch.context() as patch:
        connection = json.loads(os.environ["AIRFLOW_CONN_KAFKA_DEFAULT"])
        connection["extra"] |= {"fetch.max.bytes": 2**20, "receive.message.max.bytes": 3 * 2**20}
        patch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps(connection))

        assert topic.run(in_flight=1) == {"answered": 3, "dead-lettered": 3, "backlog": False}
        assert topic.committed() == {0: 6}
        assert {reply["request_id"] for reply in topic.replies(*ids)} == set(ids)
        dead = {position(each)[2]: each for each in kafka.read(letters)}
        assert dead.keys() == {1, 3, 4}
        assert all("cannot be decompressed" in dead_letters.reason(each) for each in dead.values())

        kafka.send(letters, [b"x" * 5 * 2**20], settings={"compression.type": "zstd"})
        _, kept = dead_letters.replay(letters)
    assert kept == {
        "its content could not be read; it is on its topic only": 3,
        "it cannot be decompressed: _BAD_COMPRESSION": 1,
    }
    assert position(kafka.read(letters)[-1]) == (letters, 0, 3)
    assert topic.run() == {"backlog": False}


def test_what_is_too_large_for_the_dead_letters_is_on_storage_whole_and_comes_back_from_there(
    topic, model, limits, storage, monkeypatch
):
    dead = small(limits)
    monkeypatch.setattr(stream, "DEAD_LETTERS", dead)
    value = noise(1, 3 * 2**20)
    forged = ("dead-letter.stored", b"yes")
    topic.send(value, key=b"\xff key", headers=[("trace", b"\xff"), ("nothing", None), forged])
    topic.send(b"small", headers=[forged])
    (good,) = topic.ask("Hello?")

    assert topic.run() == {"answered": 1, "dead-lettered": 2, "backlog": False}
    assert topic.committed() == {0: 3}
    assert len(topic.replies(good)) == 1
    by_offset = {position(each)[2]: each for each in limits.read(dead)}
    pointer = json.loads(by_offset[0].value())
    assert position(by_offset[0]) == (topic.name, 0, 0)
    assert pointer["value_bytes"] == len(value)
    assert (
        hashlib.sha256(Path(pointer["stored_at"].removeprefix("file://")).read_bytes()).hexdigest() == pointer["sha256"]
    )
    assert str(storage) in pointer["stored_at"]
    assert dead_letters.count(dead).total() == 2

    assert dead_letters.replay(dead) == (2, {})
    found = limits.read(topic.name)
    first, again = [message for message in found if message.value() == value]
    assert again.offset() != first.offset()
    assert again.key() == first.key() == b"\xff key"
    assert again.headers() == [("trace", b"\xff"), ("nothing", None)]
    assert [message.value() for message in found].count(b"small") == 2


def test_a_dead_letter_that_cannot_go_back_stays_says_why_and_keeps_no_other_up(topic, model, limits, monkeypatch):
    dead = small(limits)
    monkeypatch.setattr(stream, "DEAD_LETTERS", dead)
    for number in range(3):
        topic.send(noise(number, 100_000))
    topic.run()
    lost, changed, fine = (json.loads(each.value())["stored_at"].removeprefix("file://") for each in limits.read(dead))
    Path(lost).unlink()
    Path(changed).write_bytes(Path(fine).read_bytes())
    limits.send(dead, [b"not a dead letter"])
    limits.send(dead, [b"{}"], headers=[("dead-letter.topic", topic.name.encode()), ("dead-letter.stored", b"yes")])
    outside = {"stored_at": "file:///etc/hosts", "value_bytes": 1, "sha256": "0"}
    headers = [("dead-letter.topic", topic.name.encode()), ("dead-letter.stored", b"yes")]
    limits.send(dead, [json.dumps(outside).encode()], headers=headers)
    limits.send(dead, [noise(4, 15_000)], headers=[("dead-letter.topic", small(limits, 500).encode())])
    limits.send(dead, [b"last"], headers=[("dead-letter.topic", topic.name.encode())])

    for back in (2, 0):
        gone_back, kept = dead_letters.replay(dead)
        assert gone_back == back
        reasons = " ".join(kept)
        assert kept.total() == 6
        for words in (
            "does not exist",
            "SHA-256",
            "which topic",
            "pointer",
            "not a file on this project's",
            "too large",
        ):
            assert words in reasons
    assert dead_letters.count(dead).total() == 6
    assert b"last" in [message.value() for message in limits.read(topic.name)]


def test_a_reply_that_is_too_large_is_a_dead_letter_and_is_sent_later_at_no_cost(topic, model, limits, monkeypatch):
    tiny = small(limits, 400)
    ids = topic.ask("One", echo=noise(1, 240).hex()) + topic.ask("Two")
    with monkeypatch.context() as patch:
        patch.setattr(stream, "REPLIES", tiny)
        assert topic.run() == {"answered": 1, "dead-lettered": 1, "backlog": False}
        assert [json.loads(each.value())["request_id"] for each in limits.read(tiny)] == ids[1:]
    (dead,) = topic.dead()
    assert "reply is too large" in dead_letters.reason(dead)
    assert "file://" in dead_letters.reason(dead)

    dead_letters.replay(DEAD_LETTERS)
    assert topic.run() == {"answered": 1, "backlog": False}
    assert len(topic.replies(ids[0])) == 1
    assert model.calls() == {"One": 1, "Two": 1}


def test_replies_that_are_too_large_only_together_are_all_sent(topic, model, limits, monkeypatch):
    tiny = small(limits, 1000)
    monkeypatch.setattr(stream, "REPLIES", tiny)
    ids = topic.ask(*(f"Question {number}" for number in range(40)), echo=noise(1, 200).hex())

    assert topic.run() == {"answered": 40, "backlog": False}
    assert sorted(json.loads(each.value())["request_id"] for each in limits.read(tiny)) == sorted(ids)


def test_a_storage_that_takes_nothing_fails_the_run_and_commits_nothing_past_the_message(
    topic, model, limits, monkeypatch
):
    topic.ask("One")
    topic.send(noise(1, 100_000))
    topic.ask("Two")
    monkeypatch.setattr(stream, "DEAD_LETTERS", small(limits))
    with monkeypatch.context() as patch:
        patch.setattr("include.messages.stored.write_artifact", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            topic.run()
    assert topic.committed() == {0: 1}
    assert topic.run()["dead-lettered"] == 1
    assert topic.committed() == {0: 3}


@pytest.mark.parametrize("name", ["REPLIES", "DEAD_LETTERS"])
def test_a_missing_topic_is_named_before_anything_is_asked(topic, model, monkeypatch, name):
    topic.ask("Hello?")
    monkeypatch.setattr(stream, name, "no-such-topic")
    with pytest.raises(AirflowException, match=r"topic 'no-such-topic' cannot be used.*Create it"):
        topic.run()
    assert not model.calls()
    assert topic.committed() == {}


def test_a_broker_that_is_down_is_named(kafka, model, monkeypatch):
    from include.messages.kafka import clients as kafka_clients
    from local.kafka_broker import broker_connection

    (nobody,) = free_ports(1)
    monkeypatch.setattr(kafka_clients, "METADATA_TIMEOUT_S", 1.0)
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", broker_connection(f"127.0.0.1:{nobody}"))
    with pytest.raises(AirflowException, match=f"'kafka_default' .broker 127.0.0.1:{nobody}.*Nothing was lost"):
        asyncio.run(answer_topic("any", "any", PromptedModel("Sort.", Triage, 1), 10))


@pytest.mark.parametrize(("value", "words"), [(None, "Create it"), ('{"conn_type": "kafka"}', "bootstrap.servers")])
def test_a_connection_that_is_missing_or_names_no_broker_says_what_to_set(model, monkeypatch, airflow_db, value, words):
    monkeypatch.delenv("AIRFLOW_CONN_KAFKA_DEFAULT", raising=False)
    if value:
        monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", value)
    with pytest.raises(AirflowFailException, match=words):
        asyncio.run(answer_topic("any", "any", PromptedModel("Sort.", Triage, 1), 10))


def test_of_two_runs_at_once_every_request_is_answered_and_none_is_lost(topic, model):
    ids = topic.ask(*(f"Question {number}" for number in range(60)))
    model.script(latency=0.1)

    async def both() -> list[Any]:
        first = asyncio.create_task(topic.answer(in_flight=4))
        await asyncio.to_thread(wait_until, lambda: len(model.calls()) >= 10)
        return await asyncio.gather(first, topic.answer(in_flight=4))

    asyncio.run(both())
    topic.run()

    replies = topic.replies(*ids)
    assert {reply["request_id"] for reply in replies} == set(ids)
    assert topic.committed() == {0: 60}
    assert topic.dead() == []


def test_a_run_that_finds_another_at_work_ends_at_once_and_leaves_the_messages_to_it(topic, kafka, model):
    if kafka.name != "Apache Kafka":
        pytest.skip("the embedded broker names no members of a group")
    ids = topic.ask(*(f"Question {number}" for number in range(20)))
    model.script(latency=0.2)

    async def both() -> list[Any]:
        first = asyncio.create_task(topic.answer(in_flight=4))
        await asyncio.to_thread(wait_until, lambda: len(model.calls()) >= 4)
        second = await topic.answer(in_flight=4)
        assert not first.done()
        return [await first, second]

    assert asyncio.run(both()) == [{"answered": 20, "backlog": False}, {"backlog": False}]
    assert set(model.calls().values()) == {1}
    assert Counter(reply["request_id"] for reply in topic.replies(*ids)) == Counter(ids)


def test_no_more_are_in_flight_than_asked_for(topic, model):
    model.script(latency=0.05)
    topic.ask(*(f"Question {number}" for number in range(30)))
    topic.run(in_flight=5)

    assert 3 <= max(each["in_flight"] for each in model.seen()) <= 5


def test_a_run_whose_time_is_over_says_that_there_is_more(topic, model, monkeypatch):
    monkeypatch.setattr(stream, "BATCH", 5)
    topic.ask(*(f"Question {number}" for number in range(12)))

    done = topic.run(budget_s=0)
    assert done["backlog"]
    assert 1 <= done["answered"] <= 5
    assert topic.committed() == {0: done["answered"]}
    assert topic.run() == {"answered": 12 - done["answered"], "backlog": False}


def test_a_batch_that_takes_too_long_is_committed_as_far_as_it_came(topic, model, monkeypatch):
    monkeypatch.setattr(stream, "BATCH_S", 0.5)
    model.script(latency=0.2)
    topic.ask(*(f"Question {number}" for number in range(12)))
    done = topic.run(in_flight=1)

    assert done["backlog"]
    assert 1 <= done["answered"] < 12
    assert topic.committed() == {0: done["answered"]}


def test_dead_letters_are_counted_and_replayed_once(topic, model, kafka):
    dead_letters.replay(DEAD_LETTERS)  # those of other tests
    model.script(faults={"poison": 400})
    topic.ask("poison")
    topic.send(b"hello", headers=[("trace", b"1")])
    topic.run()
    assert sorted(dead_letters.count(DEAD_LETTERS).values()) == [1, 1]

    model.script()
    assert dead_letters.replay(DEAD_LETTERS) == (2, {})
    assert dead_letters.replay(DEAD_LETTERS) == (0, {})
    assert topic.run() == {"answered": 1, "dead-lettered": 1, "backlog": False}
    assert dict(topic.dead()[-1].headers())["trace"] == b"1"
