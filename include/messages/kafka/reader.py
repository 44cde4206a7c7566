"""Read a topic as a consumer group, from the committed offset to the end."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from include.messages.kafka.clients import KafkaClients

# How long the broker may send neither a partition nor a message nor the end of a partition.
SILENCE_S = 60.0
TAKEN_OVER = (
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError._FENCED,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError._ASSIGNMENT_LOST,
    KafkaError._MAX_POLL_EXCEEDED,
)

Place = tuple[int, int]


class TakenOver(Exception):
    """The broker has given the partitions to another reader of the group, which continues from the last commit."""


@contextmanager
def reading(clients: KafkaClients, topic: str, group: str, **settings: Any) -> Iterator[Reader]:
    """Read a topic as a member of a consumer group.

    :param settings: librdkafka's, for this consumer.
    :raises AirflowException: the broker cannot be reached, or the topic does not exist.
    """
    consumer = clients.consumer(group, {"enable.partition.eof": True, **settings})
    try:
        clients.partitions(consumer, topic)
        consumer.subscribe([topic])
        yield Reader(clients, topic, group, consumer)
    finally:
        consumer.close()


class Reader:
    """Reads the topic that its consumer has subscribed to.

    A message that cannot be decompressed (it is larger than `receive.message.max.bytes`) is returned with its position
    alone: its `error()` says why. All other messages have no error.
    """

    def __init__(self, clients: KafkaClients, topic: str, group: str, consumer: Consumer) -> None:
        self._clients = clients
        self._topic = topic
        self._group = group
        self._consumer = consumer
        self._at_end: set[int] = set()  # the partitions that were read to their end
        self._past_unreadable: defaultdict[int, int] = defaultdict(int)

    def next(self, most: int, linger_s: float = 0.0) -> list[Message]:
        """Return the next messages, in the order of their partitions.

        :return: an empty list if all are read, and no more arrived for `linger_s` seconds.
        :raises TakenOver: another reader continues.
        :raises AirflowException: the broker fails, or sends nothing for SILENCE_S.
        """
        began = all_read_at = time.monotonic()
        while True:
            if found := self._read(most):
                return found
            now = time.monotonic()
            mine = {each.partition for each in self._consumer.assignment()}
            if mine and mine <= self._at_end:
                if now - all_read_at > linger_s:
                    return []
                continue
            all_read_at = now
            if now - began > SILENCE_S:
                raise AirflowException(
                    f"{self._clients}: it has sent nothing of {self._topic!r} for {SILENCE_S:.0f} s. Does "
                    f"something else read it as the group {self._group!r}?"
                )

    def _read(self, most: int) -> list[Message]:
        first = self._consumer.poll(0.2)
        if first is None:  # not `not first`: a message without a value is falsy
            return []
        found = []
        unreadable: dict[int, Message] = {}
        for message in [first, *self._consumer.consume(most - 1, 0.05)]:
            error = message.error()
            if error is None:
                found.append(message)
                self._at_end.discard(place(message)[0])
            elif error.code() == KafkaError._PARTITION_EOF:
                self._at_end.add(place(message)[0])
            elif error.code() == KafkaError._BAD_COMPRESSION:
                unreadable[place(message)[0]] = message  # returned again until it is skipped
                self._at_end.discard(place(message)[0])
            else:
                raise self._failure("reading messages", error)
        return found + [self._pass_over(message) for message in unreadable.values()]

    def _pass_over(self, message: Message) -> Message:
        """Skip the first unread message of a batch that cannot be decompressed.

        The error only says where the batch begins. So each of its messages is skipped on its own.
        """
        partition, begin = place(message)
        (position,) = self._consumer.position([TopicPartition(self._topic, partition)])
        offset = max(
            begin,
            position.offset,
            self._clients.committed(self._consumer, self._topic, [partition])[partition],
            self._past_unreadable[partition],
        )
        self._past_unreadable[partition] = offset + 1
        self._consumer.seek(TopicPartition(self._topic, partition, offset + 1))
        return Message(topic=self._topic, partition=partition, offset=offset, error=message.error())

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Commit these offsets, by partition.

        :raises TakenOver: another reader continues.
        :raises AirflowException: the broker fails.
        """
        if not offsets:
            return
        try:
            places = [TopicPartition(self._topic, partition, offset) for partition, offset in offsets.items()]
            self._consumer.commit(offsets=places, asynchronous=False)
        except KafkaException as error:
            raise self._failure("committing", error.args[0]) from None

    def _failure(self, doing: str, error: KafkaError) -> Exception:
        return TakenOver(error.str()) if error.code() in TAKEN_OVER else self._clients.failure(doing, error)


def place(message: Message) -> Place:
    """Return the message's partition and offset."""
    partition, offset = message.partition(), message.offset()
    assert partition is not None and offset is not None  # noqa: S101, PT018  (every message has both)
    return partition, offset


def settled(messages: Iterable[Message], done: set[Place]) -> dict[int, int]:
    """Return what to commit, by partition: up to the first of these messages that is not done."""
    upto: dict[int, int] = {}
    stopped = set()
    for message in messages:
        partition, offset = place(message)
        if (partition, offset) not in done:
            stopped.add(partition)
        if partition not in stopped:
            upto[partition] = offset + 1
    return upto
