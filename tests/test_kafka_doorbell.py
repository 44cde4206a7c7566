"""The trigger that rings for messages that are not committed, against a real broker."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from include.triggers import kafka_doorbell

from include.messages.kafka.clients import KafkaClients
from include.messages.kafka.doorbell import KafkaDoorbellTrigger
from tests.kafka import Broker
from tests.stack import wait_until

pytestmark = pytest.mark.one_stack


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_doorbell, "PAUSE_S", 1.0)
    monkeypatch.setattr(kafka_doorbell, "RING_AGAIN_S", 3.0)
    monkeypatch.setattr(kafka_doorbell, "TROUBLE_PAUSE_S", 0.5)


@pytest.fixture
def topic(kafka: Broker) -> str:
    name = f"bell-{uuid4().hex}"
    kafka.create_topic(name, 2)
    return name


def doorbell(topic: str) -> KafkaDoorbellTrigger:
    return KafkaDoorbellTrigger(topic=topic, group=topic, kafka_config_id="kafka_default")


def listen(topic: str, story: Callable[[list[float]], Awaitable[None]]) -> list[float]:
    """The times of all rings while the story goes on."""
    rings: list[float] = []

    async def hear() -> None:
        async for event in doorbell(topic).run():
            assert event.payload == {"topic": topic}
            rings.append(time.monotonic())

    async def both() -> None:
        hearing = asyncio.create_task(hear())
        await story(rings)
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)

    asyncio.run(both())
    return rings


async def until(condition: Callable[[], Any]) -> None:
    await asyncio.to_thread(wait_until, condition, 20)


def commit(topic: str, partition: int, offset: int) -> None:
    consumer = KafkaClients().consumer(topic)
    consumer.commit(offsets=[TopicPartition(topic, partition, offset)], asynchronous=False)
    consumer.close()


def test_it_rings_for_what_is_there_and_for_what_comes_but_not_for_each_of_many(kafka, topic):
    kafka.send(topic, [b"waits since yesterday"])

    async def story(rings: list[float]) -> None:
        await until(lambda: rings)
        await asyncio.to_thread(commit, topic, 0, 10)
        await asyncio.to_thread(commit, topic, 1, 10)
        await asyncio.sleep(1.2)
        before = len(rings)
        await asyncio.to_thread(kafka.send, topic, [b"new"] * 100)
        await until(lambda: len(rings) > before)

    assert 2 <= len(listen(topic, story)) <= 4


def test_it_does_not_ring_for_what_is_committed(kafka, topic):
    kafka.send(topic, [b"old"] * 3, partition=0)
    commit(topic, 0, 3)

    async def story(_: list[float]) -> None:
        await asyncio.sleep(2)

    assert listen(topic, story) == []


def test_it_rings_again_as_long_as_nobody_has_committed(kafka, topic):
    kafka.send(topic, [b"x"], partition=0)

    async def story(rings: list[float]) -> None:
        await until(lambda: len(rings) >= 2)

    listen(topic, story)


def test_it_waits_for_a_topic_that_is_missing_and_says_so_once(kafka, caplog, monkeypatch):
    monkeypatch.setattr(KafkaDoorbellTrigger, "log", logging.getLogger("doorbell"))
    topic = f"bell-{uuid4().hex}"

    async def story(rings: list[float]) -> None:
        await until(lambda: caplog.messages)
        await asyncio.sleep(1.2)
        await asyncio.to_thread(kafka.create_topic, topic)
        await asyncio.to_thread(kafka.send, topic, [b"x"])
        await until(lambda: rings)

    with caplog.at_level("ERROR"):
        listen(topic, story)
    (said,) = [message for message in caplog.messages if topic in message]
    assert "Create it" in said


def test_its_row_in_the_database_names_the_connection_and_no_secret(topic):
    trigger = doorbell(topic)
    path, arguments = trigger.serialize()

    assert path == "include.messages.kafka.doorbell.KafkaDoorbellTrigger"
    assert arguments == {"topic": topic, "group": topic, "kafka_config_id": "kafka_default"}
    assert KafkaDoorbellTrigger(**arguments).serialize() == trigger.serialize()


@pytest.fixture
def transactions(kafka: Broker) -> Broker:
    """A broker with transactions."""
    if kafka.name != "Apache Kafka":
        pytest.skip("the embedded broker has no transactions")
    return kafka


def transact(kafka: Broker, topic: str, values: list[bytes], *, aborts: bool = False) -> None:
    producer = kafka.producer(**{"transactional.id": uuid4().hex})
    producer.init_transactions(30)
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, value, partition=0)
    producer.flush(30)
    (producer.abort_transaction if aborts else producer.commit_transaction)(30)


async def several_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait until the bell has compared what it saw with what is committed a few times."""
    looks = []
    look = KafkaDoorbellTrigger._is_behind
    monkeypatch.setattr(KafkaDoorbellTrigger, "_is_behind", lambda *what: looks.append(1) or look(*what))
    await until(lambda: len(looks) > 2)


def test_it_does_not_ring_for_the_marker_of_a_transaction_that_is_answered_or_was_aborted(
    transactions, topic, monkeypatch
):
    transact(transactions, topic, [b"one", b"two"])

    async def story(rings: list[float]) -> None:
        await until(lambda: rings)
        await asyncio.to_thread(commit, topic, 0, 2)  # the marker is the third
        await asyncio.to_thread(transact, transactions, topic, [b"never to be seen"], aborts=True)
        await several_looks(monkeypatch)
        before = len(rings)
        await several_looks(monkeypatch)
        assert len(rings) == before
        await asyncio.to_thread(transact, transactions, topic, [b"three"])
        await until(lambda: len(rings) > before)

    listen(topic, story)


def test_it_does_not_ring_for_what_the_broker_has_deleted(transactions, topic, monkeypatch):
    transactions.send(topic, [b"one", b"two"], partition=0)

    async def story(rings: list[float]) -> None:
        await until(lambda: rings)
        admin = AdminClient({"bootstrap.servers": transactions.bootstrap, "log_level": 0})
        (deleted,) = admin.delete_records([TopicPartition(topic, 0, 2)]).values()
        await asyncio.to_thread(deleted.result, 20)
        await several_looks(monkeypatch)
        before = len(rings)
        await several_looks(monkeypatch)
        assert len(rings) == before

    listen(topic, story)
