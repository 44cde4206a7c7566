"""The trigger that rings for messages that are not committed, against a real broker."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from include.messages.kafka import doorbell
from include.messages.kafka.clients import KafkaClients
from include.messages.kafka.doorbell import PAUSE_S, RING_AGAIN_S, KafkaDoorbellTrigger
from tests.kafka import Broker
from tests.stack import wait_until

pytestmark = pytest.mark.one_stack


class Bell:
    """A doorbell of one topic, on a clock that only the test moves; what it has done so far."""

    def __init__(self, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.topic = topic
        self.trigger = KafkaDoorbellTrigger(topic=topic, group=topic, kafka_config_id="kafka_default")
        self.rings = 0
        self.reads = 0
        self.messages = 0
        self.comparisons = 0
        self._now = 1000.0
        monkeypatch.setattr(doorbell, "time", SimpleNamespace(monotonic=lambda: self._now))
        monkeypatch.setattr(doorbell, "TROUBLE_PAUSE_S", 0.01)
        self._count(monkeypatch)

    def _count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bell = self

        class Counting(Consumer):
            def consume(self, *how: Any) -> Any:
                found = super().consume(*how)
                bell.reads += 1
                bell.messages += sum(not message.error() for message in found)
                return found

        monkeypatch.setattr("include.messages.kafka.clients.Consumer", Counting)
        is_behind = KafkaDoorbellTrigger._is_behind

        def compare(*what: Any) -> bool:
            bell.comparisons += 1
            return is_behind(*what)

        monkeypatch.setattr(KafkaDoorbellTrigger, "_is_behind", compare)

    def hear(self, story: Callable[[], Awaitable[None]]) -> None:
        """Let the bell ring while the story goes on."""

        async def listen() -> None:
            async for event in self.trigger.run():
                assert event.payload == {"topic": self.topic}
                self.rings += 1

        async def both() -> None:
            listening = asyncio.create_task(listen())
            await story()
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

        asyncio.run(both())

    async def has_rung(self, times: int) -> None:
        """Wait for this ring, and see that none comes after it."""
        await until(lambda: self.rings >= times)
        await self.has_looked()
        assert self.rings == times

    async def has_looked(self) -> None:
        """Wait until what the bell knew by now has made it ring, or not."""
        reads = self.reads
        await until(lambda: self.reads > reads + 2)

    async def passes(self, seconds: float) -> None:
        """Move the clock; where it is time for that, wait until the bell has compared with what is committed."""
        comparisons = self.comparisons
        self._now += seconds
        if seconds > RING_AGAIN_S:
            await until(lambda: self.comparisons > comparisons)
        await self.has_looked()


@pytest.fixture
def topic(kafka: Broker) -> str:
    name = f"bell-{uuid4().hex}"
    kafka.create_topic(name, 2)
    return name


@pytest.fixture
def bell(topic: str, monkeypatch: pytest.MonkeyPatch) -> Bell:
    return Bell(topic, monkeypatch)


async def until(condition: Callable[[], Any]) -> None:
    await asyncio.to_thread(wait_until, condition, 60)


def commit(topic: str, partition: int, offset: int) -> None:
    consumer = KafkaClients().consumer(topic, {})
    consumer.commit(offsets=[TopicPartition(topic, partition, offset)], asynchronous=False)
    consumer.close()


def test_it_rings_for_what_is_there_and_for_what_comes_but_not_for_each_of_many(kafka, bell):
    kafka.send(bell.topic, [b"waits since yesterday"])

    async def story() -> None:
        await bell.has_rung(1)
        await asyncio.to_thread(kafka.send, bell.topic, [b"new"] * 100)
        await until(lambda: bell.messages == 101)
        await bell.has_rung(1)
        await bell.passes(PAUSE_S + 1)
        await bell.has_rung(2)
        await bell.passes(PAUSE_S + 1)
        await bell.has_rung(2)

    bell.hear(story)


def test_it_does_not_ring_for_what_is_committed(kafka, bell):
    kafka.send(bell.topic, [b"old"] * 3, partition=0)
    commit(bell.topic, 0, 3)

    async def story() -> None:
        await bell.has_looked()
        await bell.passes(RING_AGAIN_S + 1)
        assert bell.rings == 0

    bell.hear(story)


def test_it_rings_again_as_long_as_nobody_has_committed(kafka, bell):
    kafka.send(bell.topic, [b"x"], partition=0)

    async def story() -> None:
        for times in range(1, 4):
            await bell.has_rung(times)
            await bell.passes(RING_AGAIN_S + 1)
        await bell.has_rung(4)
        await asyncio.to_thread(commit, bell.topic, 0, 1)
        await bell.passes(RING_AGAIN_S + 1)
        await bell.has_rung(4)

    bell.hear(story)


def test_it_waits_for_a_topic_that_is_missing_and_says_so_once(kafka, caplog, monkeypatch):
    monkeypatch.setattr(KafkaDoorbellTrigger, "log", logging.getLogger("doorbell"))
    bell = Bell(f"bell-{uuid4().hex}", monkeypatch)
    asked = []
    partitions = KafkaClients.partitions
    monkeypatch.setattr(KafkaClients, "partitions", lambda *what: asked.append(1) or partitions(*what))

    async def story() -> None:
        await until(lambda: len(asked) > 3)
        await asyncio.to_thread(kafka.create_topic, bell.topic)
        await asyncio.to_thread(kafka.send, bell.topic, [b"x"])
        await until(lambda: bell.rings)

    with caplog.at_level("ERROR"):
        bell.hear(story)
    (said,) = [message for message in caplog.messages if bell.topic in message]
    assert "Create it" in said


def test_a_message_that_cannot_be_decompressed_rings_and_keeps_it_from_no_later_one(kafka, bell, monkeypatch):
    connection = json.loads(os.environ["AIRFLOW_CONN_KAFKA_DEFAULT"])
    connection["extra"] |= {"fetch.max.bytes": 2**20, "receive.message.max.bytes": 3 * 2**20}
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps(connection))
    kafka.send(bell.topic, [b"x" * 5 * 2**20], settings={"compression.type": "zstd"}, partition=0)

    async def story() -> None:
        await until(lambda: bell.rings)
        assert bell.messages == 0
        await asyncio.to_thread(commit, bell.topic, 0, 1)
        await asyncio.to_thread(kafka.send, bell.topic, [b"later"], partition=0)
        await until(lambda: bell.messages)

    bell.hear(story)


def test_its_row_in_the_database_names_the_connection_and_no_secret(bell):
    path, arguments = bell.trigger.serialize()

    assert path == "include.messages.kafka.doorbell.KafkaDoorbellTrigger"
    assert arguments == {"topic": bell.topic, "group": bell.topic, "kafka_config_id": "kafka_default"}
    assert KafkaDoorbellTrigger(**arguments).serialize() == bell.trigger.serialize()


@pytest.fixture
def readers(kafka: Broker) -> Broker:
    """A broker that names the members of a group."""
    if kafka.name != "Apache Kafka":
        pytest.skip("the embedded broker names no members of a group")
    return kafka


READER = """
import sys
from confluent_kafka import Consumer
settings = {"bootstrap.servers": sys.argv[1], "group.id": sys.argv[2], "session.timeout.ms": 6000}
consumer = Consumer({**settings, "enable.auto.commit": False, "auto.offset.reset": "earliest"})
consumer.subscribe([sys.argv[2]])
while True:
    consumer.poll(1)
"""


@contextmanager
def reading(kafka: Broker, topic: str) -> Iterator[None]:
    """A run that reads, in a process that is killed in the end."""
    with subprocess.Popen([sys.executable, "-c", READER, kafka.bootstrap, topic]) as run:
        try:
            wait_until(lambda: KafkaClients().has_reader(topic))
            yield
        finally:
            run.kill()


def test_it_does_not_ring_while_a_run_reads_and_rings_when_the_broker_misses_it(readers, bell):
    async def story() -> None:
        with reading(readers, bell.topic):
            await asyncio.to_thread(readers.send, bell.topic, [b"read by the run"])
            await until(lambda: bell.messages)
            for _ in range(3):
                await bell.passes(PAUSE_S + 1)
            assert bell.rings == 0
        await until(lambda: not KafkaClients().has_reader(bell.topic))
        await bell.passes(PAUSE_S + 1)
        await bell.has_rung(1)

    bell.hear(story)


def test_it_does_not_ring_for_what_a_run_has_read_and_committed(readers, bell):
    async def story() -> None:
        with reading(readers, bell.topic):
            await asyncio.to_thread(lambda: readers.send(bell.topic, [b"read by the run"], partition=0))
            await until(lambda: bell.messages)
            await bell.passes(PAUSE_S + 1)
        await until(lambda: not KafkaClients().has_reader(bell.topic))
        await asyncio.to_thread(commit, bell.topic, 0, 1)
        await bell.passes(PAUSE_S + 1)
        assert bell.rings == 0

    bell.hear(story)


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


def test_it_does_not_ring_for_the_marker_of_a_transaction_that_is_answered_or_was_aborted(transactions, bell):
    transact(transactions, bell.topic, [b"one", b"two"])

    async def story() -> None:
        await bell.has_rung(1)
        await asyncio.to_thread(commit, bell.topic, 0, 2)  # the marker is the third
        await asyncio.to_thread(transact, transactions, bell.topic, [b"never to be seen"], aborts=True)
        await bell.passes(RING_AGAIN_S + 1)
        await bell.has_rung(1)
        await asyncio.to_thread(transact, transactions, bell.topic, [b"three"])
        await bell.has_rung(2)

    bell.hear(story)


def test_it_does_not_ring_for_what_the_broker_has_deleted(transactions, bell):
    transactions.send(bell.topic, [b"one", b"two"], partition=0)

    async def story() -> None:
        await bell.has_rung(1)
        admin = AdminClient({"bootstrap.servers": transactions.bootstrap, "log_level": 0})
        (deleted,) = admin.delete_records([TopicPartition(bell.topic, 0, 2)]).values()
        await asyncio.to_thread(deleted.result, 20)
        await bell.passes(RING_AGAIN_S + 1)
        await bell.has_rung(1)

    bell.hear(story)
