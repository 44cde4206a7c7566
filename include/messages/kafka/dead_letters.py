"""Messages that cannot be answered, on a topic of their own: as they came, with the reason and where they came from.

One that is too large for the topic of dead letters is on the project's storage instead, and its dead letter points to
it.
"""

from __future__ import annotations

import logging
from collections import Counter
from datetime import UTC, datetime
from typing import Any, NamedTuple

from confluent_kafka import Message

from include.messages.contract import trace_headers
from include.messages.kafka.clients import KafkaClients
from include.messages.kafka.reader import Place, place, reading
from include.messages.kafka.sender import Sender
from include.messages.refusals import Refused
from include.messages.stored import StoredMessage, fetch, store

PREFIX = "dead-letter."
GROUP = "dead_letters"
BATCH = 200

log = logging.getLogger(__name__)


class Replayed(NamedTuple):
    """What a replay did: how many are back on their topic, and by reason how many cannot go back."""

    back: int
    kept: Counter[str]


def dead_letter(topic: str, message: Message, reason: str) -> dict[str, Any]:
    """Return arguments for `Producer.produce`: the message as it came, with the reason and its position as headers."""
    own = _position_headers(message, reason, **({"unreadable": "yes"} if message.error() else {}))
    return {"topic": topic, "key": message.key(), "value": message.value(), "headers": [*_headers(message), *own]}


def stored_dead_letter(topic: str, message: Message, reason: str) -> dict[str, Any]:
    """Return the same for a message that is too large for the topic: its value points to the message on storage."""
    whole = StoredMessage(value=message.value(), key=message.key(), headers=_headers(message))
    pointer = store(str(message.topic()), whole).model_dump_json().encode()
    trace = [(name, value.encode()) for name, value in trace_headers(_headers(message)).items()]
    return {"topic": topic, "value": pointer, "headers": [*trace, *_position_headers(message, reason, stored="yes")]}


def _position_headers(message: Message, reason: str, **more: str) -> list[tuple[str, bytes]]:
    own = {
        "reason": reason[:1000],
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }
    return [(PREFIX + name, str(value).encode()) for name, value in own.items()]


def position(message: Message) -> tuple[str, int, int]:
    """Return where a dead letter came from: topic, partition and offset of the original.

    :raises KeyError: it does not say so, as one that something else has put on the topic.
    """
    own = _own(message)
    return own["topic"], int(own["partition"]), int(own["offset"])


def reason(message: Message) -> str:
    """Return why it is a dead letter."""
    return _own(message).get("reason", "it gives no reason")


def count(topic: str) -> Counter[str]:
    """Count the dead letters that nobody has replayed, by reason."""
    reasons: Counter[str] = Counter()
    with reading(KafkaClients(), topic, GROUP) as reader:
        while batch := reader.next(BATCH):
            reasons.update(map(reason, batch))
    return reasons


def replay(topic: str) -> Replayed:
    """Put each dead letter back on its topic, as it came.

    Only then it is committed, so that none is lost; one that was put back right before a crash is put back twice. One
    that cannot go back (it is too large for its topic, or its file on storage is gone) is put at the end of the dead
    letters, so that it keeps no other from being replayed.

    :raises AirflowException: the broker fails.
    """
    clients = KafkaClients()
    back, kept = 0, Counter[str]()
    put_at_end: set[Place] = set()
    ended: set[int] = set()  # the partitions of which only those are left that this replay has put there
    with Sender(clients) as sender, reading(clients, topic, GROUP) as reader:
        while batch := reader.next(BATCH):
            for message in batch:
                partition, offset = place(message)
                if (partition, offset) in put_at_end:
                    ended.add(partition)
                if partition in ended:
                    continue
                try:
                    sender.send(_original(message)).result()
                    back += 1
                except (ValueError, Refused) as why:
                    log.warning("The dead letter at %d of %r stays: %s", offset, topic, why)
                    kept[str(why)] += 1
                    again = {
                        "topic": topic,
                        "key": message.key(),
                        "value": message.value(),
                        "headers": message.headers(),
                    }
                    if message.error():
                        again = dead_letter(topic, message, str(why))
                    sent = sender.send({**again, "partition": partition})
                    put_at_end.add(place(sent.result()))
                reader.commit({partition: offset + 1})
    return Replayed(back, kept)


def _original(message: Message) -> dict[str, Any]:
    """Return arguments for `Producer.produce` that make it what it was.

    :raises ValueError: it is on storage and cannot be read there, never was readable, or does not say where it came
        from.
    """
    if error := message.error():
        raise ValueError(f"it cannot be decompressed: {error.name()}")
    own = _own(message)
    if "topic" not in own:
        raise ValueError("it does not say which topic it came from")
    if "unreadable" in own:
        raise ValueError("its content could not be read; it is on its topic only")
    if "stored" not in own:
        return {"topic": own["topic"], "key": message.key(), "value": message.value(), "headers": _headers(message)}
    whole = fetch(message.value() or b"")
    return {"topic": own["topic"], "key": whole.key, "value": whole.value, "headers": whole.headers}


def _headers(message: Message) -> list[Any]:
    """Return the sender's own headers, without those that look like ours, which would be believed."""
    return [each for each in message.headers() or [] if not each[0].startswith(PREFIX)]


def _own(message: Message) -> dict[str, str]:
    headers: Any = message.headers() or []
    return {
        name.removeprefix(PREFIX): value.decode(errors="replace")
        for name, value in headers
        if name.startswith(PREFIX) and value is not None
    }
