"""Send records to Kafka, with the outcome of each."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message

from include.messages.kafka.clients import KafkaClients
from include.messages.refusals import Refused, TooLarge

TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)
# The broker refuses this record, or its topic, but may accept others.
REFUSED = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.INVALID_RECORD,
    KafkaError._INVALID_ARG,
)


class Sender:
    """Sends records while it is open, each in its own batch, as a topic's limit is for a batch."""

    def __init__(self, clients: KafkaClients) -> None:
        self._clients = clients
        self.producer = clients.producer({"batch.num.messages": 1})
        self._closed = threading.Event()

    def __enter__(self) -> Sender:
        threading.Thread(target=self._serve, name="kafka-sender", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _serve(self) -> None:
        while not self._closed.is_set():
            self.producer.poll(0.1)

    def send(self, record: dict[str, Any]) -> Future[Message]:
        """Start to send a record (arguments of `Producer.produce`).

        :return: the future of its position, set once the broker has it. It raises `TooLarge`; `Refused`, if the broker
            may accept other records; `AirflowException`, if the broker fails.
        """
        sent: Future[Message] = Future()
        sent.set_running_or_notify_cancel()  # so that no waiter can cancel it

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is None:
                sent.set_result(message)
            else:
                sent.set_exception(self._failure(record["topic"], error))

        while True:
            try:
                self.producer.produce(**record, on_delivery=delivered)
            except BufferError:  # too many records are in flight
                self.producer.poll(0.1)
            except KafkaException as error:
                delivered(error.args[0], Message())
                return sent
            else:
                return sent

    def _failure(self, topic: str, error: KafkaError) -> Exception:
        if error.code() not in (*TOO_LARGE, *REFUSED):
            return self._clients.failure(f"sending to the topic {topic!r}", error)
        kind = TooLarge if error.code() in TOO_LARGE else Refused
        return kind(
            f"{self._clients}: the topic {topic!r} did not take a message: {error.str()}. It stays where it was."
        )
