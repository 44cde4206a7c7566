"""Read the messages in the events of a Kafka watcher, and send the replies."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from include.messages.contract import REPLIES, Reply, Request
from include.messages.kafka.clients import KafkaClients
from include.messages.kafka.sender import Sender
from include.messages.refusals import TooLarge

log = logging.getLogger(__name__)


def requests_of(events: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the requests in these events as JSON, each id once.

    An event whose message cannot be answered, or that is not from the watcher (anyone with access to the REST API can
    create one), is left out, with an error in the log that names the message's position.
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
            log.error("The event of %s has no message of the watcher; it is left out.", event.timestamp)
            continue
        requests.setdefault(request.request_id, request.model_dump(mode="json"))
    return list(requests.values())


def send_replies(conn_id: str, requests: Sequence[dict[str, Any]], answers: Sequence[Any]) -> tuple[int, list[str]]:
    """Send a reply for each answer; return the number of answers, and the ids of the requests without one.

    A reply that is too large for its topic counts as missing, with an error in the log that names the request.

    :param answers: in the order of the requests; None for a missing one.
    :raises AirflowException: the broker did not accept all of them; the next try sends them again.
    """
    failed: list[str] = []
    sent = {}
    clients = KafkaClients(conn_id)
    with Sender(clients) as sender:
        clients.partitions(sender.producer, REPLIES)
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
                value = reply.model_dump_json().encode()
                sent[request.request_id] = sender.send({"topic": REPLIES, "key": request.request_id, "value": value})
        for request_id, delivery in sent.items():
            try:
                delivery.result()
            except TooLarge as refusal:
                log.error("The reply to %r is left out. %s", request_id, refusal)
                failed.append(request_id)
    return len(requests) - len(failed), failed
