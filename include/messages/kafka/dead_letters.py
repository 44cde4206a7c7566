"""Messages that cannot be answered, on a topic of their own: as they came, with the reason and where they came from.

One that is too large for the topic of dead letters is on the project's storage instead, and its dead letter points to
it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.providers.common.compat.sdk import AirflowException

from include.messages.kafka.clients import KafkaClients
from include.messages.kafka.sender import Sender, is_of_the_record
from include.messages.stored import StoredMessage, fetch, store

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message

PREFIX = "dead-letter."
STORED = PREFIX + "stored"
GROUP = "dead_letters"
SILENCE_S = 60.0

Place = tuple[int | None, int | None]

log = logging.getLogger(__name__)


class CannotGoBack(Exception):
    """A dead letter cannot be what it was, or its topic does not take it."""


class Replayed(NamedTuple):
    """What a replay did: how many are back on their topic, and by reason how many cannot go back."""

    back: int
    kept: Counter[str]


def dead_letter(topic: str, message: Message, reason: str) -> dict[str, Any]:
    """Arguments for `Producer.produce`: the message as it came, with the reason and its position as headers."""
    headers = [*_headers(message), *_position_headers(message, reason)]
    return {"topic": topic, "key": message.key(), "value": message.value(), "headers": headers}


def stored_dead_letter(topic: str, message: Message, reason: str) -> dict[str, Any]:
    """As `dead_letter`, for a message that is too large for the topic: its value points to the message on storage."""
    whole = StoredMessage(value=message.value(), key=message.key(), headers=_headers(message))
    pointer = store(str(message.topic()), whole)
    headers = [*_position_headers(message, reason), (STORED, b"yes")]
    return {"topic": topic, "value": pointer.model_dump_json().encode(), "headers": headers}


def _position_headers(message: Message, reason: str) -> list[tuple[str, bytes]]:
    own = {
        "reason": reason[:1000],
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return [(PREFIX + name, str(value).encode()) for name, value in own.items()]


def position(message: Message) -> tuple[str, int, int]:
    """Where a dead letter came from: topic, partition and offset of the original.

    :raises KeyError: it does not say so, as one that something else has put on the topic.
    """
    own = _own(message)
    return own["topic"], int(own["partition"]), int(own["offset"])


def reason(message: Message) -> str:
    """Why it is a dead letter."""
    return _own(message).get("reason", "it gives no reason")


def count(topic: str) -> Counter[str]:
    """How many dead letters, by reason, nobody has replayed."""
    with _reader(topic) as consumer:
        return Counter(reason(message) for message in _all(consumer, set()))


def replay(topic: str) -> Replayed:
    """Put each dead letter back on its topic, as it came.

    Only then it is committed, so that none is lost; one that was put back right before a crash is put back twice. One
    that cannot go back (it is too large for its topic, or its file on storage is gone) is put at the end of the dead
    letters, so that it keeps no other from being replayed.

    :raises AirflowException: the broker fails.
    """
    clients = KafkaClients()
    sender = Sender(clients)
    back, kept = 0, Counter[str]()
    put_at_end: set[Place] = set()
    with _reader(topic) as consumer:
        for message in _all(consumer, put_at_end):
            try:
                _put(sender, clients, _original(message))
                back += 1
            except CannotGoBack as why:
                log.warning("The dead letter at %s of %r stays: %s.", message.offset(), topic, why)
                kept[str(why)] += 1
                again = {"key": message.key(), "value": message.value(), "headers": message.headers()}
                put_at_end.add(_put(sender, clients, {"topic": topic, "partition": message.partition(), **again}))
            consumer.commit(message=message, asynchronous=False)
    return Replayed(back, kept)


def _original(message: Message) -> dict[str, Any]:
    """Arguments for `Producer.produce` that make it what it was.

    :raises CannotGoBack: it is on storage and cannot be read there, or does not say where it came from.
    """
    own = _own(message)
    if "topic" not in own:
        raise CannotGoBack("it does not say which topic it came from")
    if "stored" not in own:
        return {"topic": own["topic"], "key": message.key(), "value": message.value(), "headers": _headers(message)}
    try:
        whole = fetch(message.value() or b"")
    except ValueError as error:
        raise CannotGoBack(str(error)) from None
    return {"topic": own["topic"], "key": whole.key, "value": whole.value, "headers": whole.headers}


def _put(sender: Sender, clients: KafkaClients, record: dict[str, Any]) -> Place:
    """Put a record on its topic; return where it is then.

    :raises CannotGoBack: the broker takes others, but not this one.
    """
    from confluent_kafka import KafkaError, KafkaException

    delivered: list[tuple[Any, Any]] = []
    sender.send(record, lambda *how: delivered.append(how))
    sender.flush()
    ((error, message),) = delivered or [(KafkaError(KafkaError._MSG_TIMED_OUT), None)]
    if error is None:
        return message.partition(), message.offset()
    if is_of_the_record(error):
        raise CannotGoBack(f"the topic {record['topic']!r} does not take it ({error.str()})")
    raise clients.failure("putting a dead letter back", KafkaException(error))


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


def _all(consumer: Consumer, end: Set[Place]) -> Iterator[Message]:
    """What there is, in each partition up to its end or to a message at one of these places.

    :raises AirflowException: the broker does not give it out in time.
    """
    from confluent_kafka import KafkaError

    at_end: set[int | None] = set()
    ended: set[int | None] = set()
    deadline = time.monotonic() + SILENCE_S
    while time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is None:
            mine = {each.partition for each in consumer.assignment()}
            if mine and mine <= at_end:
                return
        elif message.error() is None:
            if (message.partition(), message.offset()) in end:
                ended.add(message.partition())
            if message.partition() in ended:
                at_end.add(message.partition())
                continue
            at_end.discard(message.partition())
            deadline = time.monotonic() + SILENCE_S
            yield message
        elif (error := message.error()) and error.code() == KafkaError._PARTITION_EOF:
            at_end.add(message.partition())
    raise AirflowException(
        f"The broker has given out no dead letters for {SILENCE_S:.0f} s. Does another run read them?"
    )


def _headers(message: Message) -> list[Any]:
    """The sender's own headers: one that looks like ours would be believed."""
    return [each for each in message.headers() or [] if not each[0].startswith(PREFIX)]


def _own(message: Message) -> dict[str, str]:
    headers: Any = message.headers() or []
    return {
        name.removeprefix(PREFIX): value.decode(errors="replace")
        for name, value in headers
        if name.startswith(PREFIX) and value is not None
    }
