"""Answer the requests of a Kafka topic, even across kills and restarts.

A run reads from the committed offset, in batches. Only settled messages are committed, without a gap.
include/messages/answers.py explains what this guarantees.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import Any

from confluent_kafka import Message

from include.messages.answers import answer_all
from include.messages.contract import DEAD_LETTERS, REPLIES, Reply, Request, read_request, trace_headers
from include.messages.kafka.clients import KafkaClients
from include.messages.kafka.dead_letters import dead_letter, stored_dead_letter
from include.messages.kafka.reader import Place, TakenOver, place, reading, settled
from include.messages.kafka.sender import Sender
from include.messages.model import PromptedModel
from include.messages.refusals import TooLarge

BATCH = 200
# A run that finds the topic empty waits this long for more, so that it answers the next message at once.
LINGER_S = 4.0
# After this time a batch begins no answer. If a run does not fetch the next batch within the second time, the broker
# considers it dead; the two leave room for the longest call with its waits (include/ai/model.py).
BATCH_S = 240.0
LONGEST_BATCH_MS = 20 * 60 * 1000

log = logging.getLogger(__name__)


async def answer_topic(topic: str, group: str, model: PromptedModel, budget_s: float) -> dict[str, Any]:
    """Answer the messages on a topic, until it is empty or the time is over.

    :param group: the consumer group whose committed offset is the start; also the folder of the answers.
    :param budget_s: after these seconds no batch is begun.
    :return: numbers of messages (`answered`, `repeated`, `dead-lettered`) and whether there is a `backlog`.
    :raises AirflowFailException: the account or a connection is at fault; no retry helps.
    :raises AirflowException: the broker or the model fails; a later run continues.
    """
    ends = time.monotonic() + budget_s
    clients = KafkaClients()
    counts: Counter[str] = Counter()
    settings = {"max.poll.interval.ms": LONGEST_BATCH_MS}
    if clients.has_reader(group):
        log.info("Another run reads %r as %r, or died without the broker noticing yet. This one ends.", topic, group)
        return {"backlog": False}
    try:
        with Sender(clients) as sender, reading(clients, topic, group, **settings) as reader:
            clients.partitions(sender.producer, REPLIES, DEAD_LETTERS)
            while batch := await asyncio.to_thread(reader.next, BATCH, LINGER_S):
                topics = Topics(sender)
                try:
                    counts += await answer_all(batch, topics, model, group, BATCH_S)
                finally:
                    await asyncio.to_thread(reader.commit, settled(batch, topics.settled))
                if counts["left"] or time.monotonic() > ends:
                    del counts["left"]
                    return {**counts, "backlog": True}
    except TakenOver as taken:
        log.warning("Another run has taken over: %s. This one ends; nothing is lost.", taken)
    return {**counts, "backlog": False}


class Topics:
    """The topic of the messages, with those of replies and dead letters: a `Mailbox`."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self.settled: set[Place] = set()

    def name(self, message: Message) -> str:
        """Return the message's position."""
        return f"{message.topic()}[{message.partition()}] at {message.offset()}"

    def read(self, message: Message) -> tuple[Request | None, str | None]:
        """Read the request."""
        if error := message.error():
            return None, f"it cannot be decompressed: {error.name()}"
        return read_request(message.value())

    def trace(self, message: Message) -> dict[str, str]:
        """Return the message's headers of W3C Trace Context."""
        headers: Any = message.headers() or []
        return trace_headers(headers)

    async def reply(self, message: Message, reply: Reply) -> None:
        """Send a reply.

        :raises TooLarge: the topic refuses a reply of this size.
        """
        headers = [(name, value.encode()) for name, value in self.trace(message).items()]
        value = reply.model_dump_json().encode()
        await self._send({"topic": REPLIES, "key": reply.request_id, "value": value, "headers": headers})

    async def bury(self, message: Message, reason: str) -> None:
        """Send a dead letter.

        One that is too large goes to the project's storage, and the dead letter points to it.
        """
        try:
            await self._send(dead_letter(DEAD_LETTERS, message, reason))
        except TooLarge:
            await self._send(await asyncio.to_thread(stored_dead_letter, DEAD_LETTERS, message, reason))

    async def settle(self, message: Message) -> None:
        """Mark the message as ready to be committed."""
        self.settled.add(place(message))

    async def _send(self, record: dict[str, Any]) -> None:
        await asyncio.wrap_future(self._sender.send(record))
