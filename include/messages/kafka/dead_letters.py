"""Messages that cannot be answered, on a topic of their own: unchanged, with the reason and their position.

A message that is too large for the topic of dead letters is on the project's storage, and its dead letter points to it.
"""

from __future__ import annotations

import logging
from collections import Counter
from datetime import UTC, datetime
from typing import Any

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


def dead_letter(topic: str, message: Message, reason: str) -> dict[str, Any]:
    """Return arguments for `Producer.produce`: the message, with the reason and its position as headers."""
    own = _position_headers(message, reason, **({"unreadable": "yes"} if message.error() else {}))
    return _record(topic, message, [*_headers(message), *own])


def stored_dead_letter(topic: str, message: Message, reason: str) -> dict[str, Any]:
    """Do the same for a message that is too large for the topic: the value points to the message on storage."""
    whole = StoredMessage(value=message.value(), key=message.key(), headers=_headers(message))
    pointer = store(str(message.topic()), whole).model_dump_json().encode()
    trace = [(name, value.encode()) for name, value in trace_headers(_headers(message)).items()]
    return {"topic": topic, "value": pointer, "headers": [*trace, *_position_headers(message, reason, stored="yes")]}


def _record(topic: str, message: Message, headers: Any) -> dict[str, Any]:
    return {"topic": topic, "key": message.key(), "value": message.value(), "headers": headers}


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


def reason(message: Message) -> str:
    """Return why a message is a dead letter."""
    return _own(message).get("reason", "it gives no reason")


def count(topic: str) -> Counter[str]:
    """Count the dead letters that were not replayed, by reason."""
    reasons: Counter[str] = Counter()
    with reading(KafkaClients(), topic, GROUP) as reader:
        while batch := reader.next(BATCH):
            reasons.update(map(reason, batch))
    return reasons


def replay(topic: str) -> tuple[int, Counter[str]]:
    """Put each dead letter back on its topic, unchanged.

    Each is committed only after that, so that none is lost; one that was put back right before a crash is put back
    twice. One that cannot go back (it is too large for its topic, or its file on storage is missing) is put at the end
    of the dead letters, so that it does not block the others.

    :return: how many are back on their topic, and by reason how many cannot go back.
    :raises AirflowException: the broker fails.
    """
    clients = KafkaClients()
    back, kept = 0, Counter[str]()
    put_at_end: set[Place] = set()
    ended: set[int] = set()  # the partitions in which only letters that this replay put at the end are left
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
                    again = _record(topic, message, message.headers())
                    if message.error():
                        again = dead_letter(topic, message, str(why))
                    sent = sender.send({**again, "partition": partition})
                    put_at_end.add(place(sent.result()))
                reader.commit({partition: offset + 1})
    return back, kept


def _original(message: Message) -> dict[str, Any]:
    """Return arguments for `Producer.produce` that restore the original message.

    :raises ValueError: the message is on storage and cannot be read there, was never readable, or does not name its
        topic.
    """
    if error := message.error():
        raise ValueError(f"it cannot be decompressed: {error.name()}")
    own = _own(message)
    if "topic" not in own:
        raise ValueError("it does not say which topic it came from")
    if "unreadable" in own:
        raise ValueError("its content could not be read; it is on its topic only")
    if "stored" not in own:
        return _record(own["topic"], message, _headers(message))
    whole = fetch(message.value() or b"")
    return {"topic": own["topic"], "key": whole.key, "value": whole.value, "headers": whole.headers}


def _headers(message: Message) -> list[Any]:
    """Return the sender's own headers, without any that look like ours, which would be trusted."""
    return [each for each in message.headers() or [] if not each[0].startswith(PREFIX)]


def _own(message: Message) -> dict[str, str]:
    headers: Any = message.headers() or []
    return {
        name.removeprefix(PREFIX): value.decode(errors="replace")
        for name, value in headers
        if name.startswith(PREFIX) and value is not None
    }
