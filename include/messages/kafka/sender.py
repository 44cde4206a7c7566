"""Send records to Kafka and learn of each what became of it.

A topic's limit is that of a batch of records as the producer happens to pack them. So a record counts as too large
only after the broker has refused it in a batch of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from include.messages.kafka.clients import DELIVERY_TIMEOUT_S, KafkaClients

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message

    Done = Callable[[KafkaError | None, Message | None], None]


class Sender:
    """Sends records, and calls back with an error (or None), each time once, at the latest in `flush`."""

    def __init__(self, clients: KafkaClients) -> None:
        self.producer = clients.producer()
        self._waiting: deque[tuple[dict[str, Any], Done]] = deque()

    def send(self, record: dict[str, Any], done: Done) -> None:
        """Begin to send a record (arguments of `Producer.produce`).

        :param done: gets the broker's error, or None and the record with its place. It must not raise.
        """
        self._send(record, done, alone=False)

    def flush(self) -> None:
        """Wait until it is known of each record whether the broker has it."""
        self.producer.flush(DELIVERY_TIMEOUT_S + 5)
        while self._waiting:
            self._send(*self._waiting.popleft(), alone=True)
            self.producer.flush(DELIVERY_TIMEOUT_S + 5)

    def _send(self, record: dict[str, Any], done: Done, *, alone: bool) -> None:
        from confluent_kafka import KafkaException

        def delivered(error: KafkaError | None, message: Message | None) -> None:
            if error is not None and is_too_large(error) and not alone:
                self._waiting.append((record, done))
            else:
                done(error, message)

        try:
            self.producer.produce(**record, on_delivery=delivered)
        except BufferError:  # too much on its way at the same time
            self._waiting.append((record, done))
        except KafkaException as error:
            delivered(error.args[0], None)
        else:
            self.producer.poll(0)


def is_too_large(error: KafkaError) -> bool:
    """Whether the record is larger than its topic, the broker or the client allows."""
    from confluent_kafka import KafkaError

    return error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)


def is_of_the_record(error: KafkaError) -> bool:
    """Whether other records may be taken, but this one, or its topic, will not be."""
    from confluent_kafka import KafkaError

    return is_too_large(error) or error.code() in (
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.INVALID_RECORD,
    )
