"""Messages that cannot be answered, on a topic of their own: as they came, with the reason and where they came from."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException

from include.kafka_clients import DELIVERY_TIMEOUT_S, KafkaClients

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message

PREFIX = "dead-letter."
GROUP = "dead_letters"
SILENCE_S = 60.0

log = logging.getLogger(__name__)


def dead_letter(topic: str, message: Message, reason: str) -> dict[str, Any]:
    """Arguments for `Producer.produce`: the message as it came, with the reason and its position as headers."""
    own = {
        "reason": reason[:1000],
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    headers = [*_headers(message), *((PREFIX + name, str(value).encode()) for name, value in own.items())]
    return {"topic": topic, "key": message.key(), "value": message.value(), "headers": headers}


def position(message: Message) -> tuple[str, int, int]:
    """Where a dead letter came from: topic, partition and offset of the original."""
    own = _own(message)
    return own["topic"], int(own["partition"]), int(own["offset"])


def reason(message: Message) -> str:
    """Why it is a dead letter."""
    return _own(message)["reason"]


def count(topic: str) -> Counter[str]:
    """How many dead letters, by reason, nobody has replayed."""
    with _reader(topic) as consumer:
        return Counter(reason(message) for message in _all(consumer))


def replay(topic: str) -> int:
    """Put each dead letter back on its topic, as it came; return how many.

    Only then it is committed, so that none is lost; one that was put back right before a crash is put back twice.

    :raises AirflowException: the broker does not take one.
    """
    from confluent_kafka import KafkaException

    clients = KafkaClients()
    replayed = 0
    refused: list[Any] = []
    producer = clients.producer()
    with _reader(topic) as consumer:
        for message in _all(consumer):
            headers = [each for each in _headers(message) if not each[0].startswith(PREFIX)]
            producer.produce(
                position(message)[0],
                key=message.key(),
                value=message.value(),
                headers=headers,
                on_delivery=lambda error, _: refused.append(error) if error else None,
            )
            if producer.flush(DELIVERY_TIMEOUT_S) or refused:
                raise clients.failure("putting a dead letter back", KafkaException(*refused))
            consumer.commit(message=message, asynchronous=False)
            replayed += 1
    return replayed


@contextmanager
def _reader(topic: str) -> Iterator[Consumer]:
    clients = KafkaClients()
    consumer = clients.consumer(GROUP, {"enable.partition.eof": True})
    try:
        clients.partitions(consumer, topic)
        consumer.subscribe([topic])
        yield consumer
    finally:
        consumer.close()


def _all(consumer: Consumer) -> Iterator[Message]:
    """What there is.

    :raises AirflowException: the broker does not give it out in time.
    """
    from confluent_kafka import KafkaError

    at_end: set[int | None] = set()
    deadline = time.monotonic() + SILENCE_S
    while time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is None:
            mine = {each.partition for each in consumer.assignment()}
            if mine and mine <= at_end:
                return
        elif message.error() is None:
            at_end.discard(message.partition())
            deadline = time.monotonic() + SILENCE_S
            yield message
        elif (error := message.error()) and error.code() == KafkaError._PARTITION_EOF:
            at_end.add(message.partition())
    raise AirflowException(
        f"The broker has given out no dead letters for {SILENCE_S:.0f} s. Does another run read them?"
    )


def _headers(message: Message) -> list[Any]:
    return list(message.headers() or [])


def _own(message: Message) -> dict[str, str]:
    # The last one counts, as a sender may have written a header of this name.
    return {
        name.removeprefix(PREFIX): value.decode(errors="replace")
        for name, value in _headers(message)
        if name.startswith(PREFIX) and value is not None
    }
