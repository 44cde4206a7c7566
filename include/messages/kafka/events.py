"""The messages in events of a Kafka watcher, and the replies to them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from include.messages.contract import REPLIES, Reply, Request
from include.messages.kafka.clients import KafkaClients
from include.messages.kafka.sender import Sender, is_too_large

log = logging.getLogger(__name__)


def requests_of(events: Sequence[Any]) -> list[dict[str, Any]]:
    """The requests in these events, each id once.

    An event whose message cannot be answered, or that is none of the watcher's (anybody who may call the REST API can
    create one), is left out with an error in the log that names the message's position.
    """
    requests: dict[str, dict[str, Any]] = {}
    for event in events:
        received = event.extra.get("payload")
        try:
            where = f"{received['topic']}[{received['partition']}] at {received['offset']}"
            if received["error"]:
                log.error("%s is left out: %s", where, received["error"])
                continue
            request = Request.model_validate(received["request"])
        except (TypeError, KeyError, ValueError):
            log.error("The event of %s holds no message of the watcher; it is left out.", event.timestamp)
            continue
        requests.setdefault(request.request_id, request.model_dump(mode="json"))
    return list(requests.values())


def send_replies(conn_id: str, requests: Sequence[dict[str, Any]], answers: Sequence[Any]) -> tuple[int, list[str]]:
    """Send a reply for each answer that there is; return their number, and the ids of the requests without one.

    A reply that is too large for its topic is left out, with an error in the log that names the request.

    :raises AirflowException: the broker did not take all of them; the next try sends them again.
    """
    clients = KafkaClients(conn_id)
    sender = Sender(clients)
    clients.partitions(sender.producer, REPLIES)
    refused: list[KafkaError] = []
    failed: list[str] = []

    def outcome(request_id: str, error: KafkaError | None, _: Any) -> None:
        if error and is_too_large(error):
            log.error("The reply to %r is too large for the topic %r; it is left out.", request_id, REPLIES)
            failed.append(request_id)
        elif error:
            refused.append(error)

    for fields, answer in zip(requests, answers, strict=True):
        request = Request.model_validate(fields)
        if answer is None:
            failed.append(request.request_id)
        elif request.reply.wanted:
            reply = Reply(
                request_id=request.request_id,
                answer=answer,
                echo=request.reply.echo,
                answered_at=datetime.now(UTC),
            )
            record = {"topic": REPLIES, "key": request.request_id, "value": reply.model_dump_json().encode()}
            sender.send(record, partial(outcome, request.request_id))
    sender.flush()
    if refused:
        raise clients.failure("sending the replies", KafkaException(*refused[:1]))
    return len(requests) - len(failed), failed
