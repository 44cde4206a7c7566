"""Answer the requests of a Kafka topic so that none is lost, whatever is killed or restarted.

A run reads from the committed offset, in batches. A message is done when its answer is stored and its reply (or its
dead letter) is acknowledged by the broker; only what is done is committed, without a gap. So a message is handled at
least once. A repeat finds the stored answer: it is not paid again, and a reply that is on the topic is not sent again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException

from include.messages.answerer import Answerer, Unanswerable
from include.messages.answers import RequestAnswers
from include.messages.contract import DEAD_LETTERS, REPLIES, read_request
from include.messages.kafka.clients import KafkaClients
from include.messages.kafka.dead_letters import dead_letter, stored_dead_letter
from include.messages.kafka.sender import Sender, is_too_large
from include.messages.kafka.sent_replies import SentReplies

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message

BATCH = 200
# A run that finds the topic empty waits this long for more: the next message then finds it at work.
LINGER_S = 4.0
# So long may a broker say nothing at all before the run ends, and the next one says what is wrong with it.
SILENCE_S = 30.0
JOIN_TIMEOUT_S = 60.0
# No answer is begun later than this in a batch. The broker takes a run for dead that is not back for the next batch
# within the second time; the two leave room for the longest call with its waits (include/ai/model.py).
BATCH_S = 240.0
LONGEST_BATCH_MS = 20 * 60 * 1000

log = logging.getLogger(__name__)


class TakenOver(Exception):
    """The broker has given the partitions to another run, which goes on from the last commit."""


@dataclass
class Stream:
    """One run's work on a topic.

    :param topic: of requests.
    :param group: the consumer group whose committed offset is the place to go on from; also the folder of the answers.
    :param answerer: asks the model.
    """

    topic: str
    group: str
    answerer: Answerer

    def __post_init__(self) -> None:
        self.clients = KafkaClients()
        self.sender = Sender(self.clients)
        self.sent = SentReplies(self.clients, self.group)
        self.began_at = datetime.now(UTC)
        settings = {"max.poll.interval.ms": LONGEST_BATCH_MS, "enable.partition.eof": True}
        self.consumer: Consumer = self.clients.consumer(self.group, settings)
        self._at_end: set[int | None] = set()  # the partitions of which everything was read
        self.counts: Counter[str] = Counter()
        self._free = asyncio.Semaphore(self.answerer.in_flight)

    async def run(self, budget_s: float) -> dict[str, Any]:
        """Answer what is there, until the topic is empty or the time is over.

        :return: numbers of messages (`answered`, `repeated`, `dead-lettered`) and whether there is a `backlog`.
        :raises AirflowFailException: the account or a connection is at fault; no retry mends it.
        :raises AirflowException: the broker or the model fails; a later run goes on.
        """
        ends = time.monotonic() + budget_s
        try:
            self.clients.partitions(self.consumer, self.topic, REPLIES, DEAD_LETTERS)
            self.consumer.subscribe([self.topic])
            while batch := await asyncio.to_thread(self._next_batch):
                finished = await self._work_on(batch)
                if not finished or time.monotonic() > ends:
                    return {**self.counts, "backlog": True}
        except TakenOver as taken:
            log.warning("Another run has taken over: %s. This one ends; nothing is lost.", taken)
        finally:
            self.answerer.usage.publish()
            await asyncio.to_thread(self.consumer.close)
        return {**self.counts, "backlog": False}

    def _next_batch(self) -> list[Message]:
        """The next messages, as many as there are now; none if all are read and no more came for LINGER_S."""
        began = joined_at = time.monotonic()
        while True:
            if found := self._read():
                return found
            now = time.monotonic()
            mine = {each.partition for each in self.consumer.assignment()}
            if not mine:
                joined_at = now
                if now - began > JOIN_TIMEOUT_S:
                    raise AirflowException(
                        f"{self.clients}: no partition of {self.topic!r} was given to this run within "
                        f"{JOIN_TIMEOUT_S:.0f} s. Does something else read it as the group {self.group!r}?"
                    )
            elif now - joined_at > (LINGER_S if mine <= self._at_end else SILENCE_S):
                return []

    def _read(self) -> list[Message]:
        """What is there at once."""
        from confluent_kafka import KafkaError

        first = self.consumer.poll(0.2)
        found = []
        for message in [first, *self.consumer.consume(BATCH - 1, 0.05)] if first else []:
            error = message.error()
            if error is None:
                found.append(message)
                self._at_end.discard(message.partition())
            elif error.code() == KafkaError._PARTITION_EOF:
                self._at_end.add(message.partition())
            else:
                raise self._failure("reading messages", error)
        return found

    async def _work_on(self, batch: list[Message]) -> bool:
        """Handle the messages side by side, and commit those that are done; whether the time was enough for all.

        :raises Exception: what was in the way of the others.
        """
        work = _Batch(self, time.monotonic() + BATCH_S)
        await asyncio.gather(*(work.handle(message) for message in batch))
        await work.deliver()
        await asyncio.to_thread(self._commit, batch, work.done)
        if work.problem:
            raise work.problem
        if work.refusal:
            raise AirflowException(f"{self.clients}: {work.refusal}. Nothing is committed past it.")
        return len(work.done) == len(batch)

    def _commit(self, batch: list[Message], done: set[Place]) -> None:
        """Commit each partition up to its first message that is not done."""
        from confluent_kafka import KafkaException, TopicPartition

        upto: dict[int, int] = {}
        stopped = set()
        for message in batch:
            partition, offset = _place(message)
            if (partition, offset) not in done:
                stopped.add(partition)
            if partition not in stopped:
                upto[partition] = offset + 1
        if not upto:
            return
        offsets = [TopicPartition(self.topic, partition, offset) for partition, offset in upto.items()]
        try:
            self.consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            raise self._failure("committing", error.args[0]) from None

    def _failure(self, doing: str, error: Any) -> Exception:
        from confluent_kafka import KafkaError, KafkaException

        taken_over = (
            KafkaError.FENCED_INSTANCE_ID,
            KafkaError._FENCED,
            KafkaError.UNKNOWN_MEMBER_ID,
            KafkaError.ILLEGAL_GENERATION,
            KafkaError.REBALANCE_IN_PROGRESS,
            KafkaError._ASSIGNMENT_LOST,
            KafkaError._MAX_POLL_EXCEEDED,
        )
        if error.code() in taken_over:
            return TakenOver(error.str())
        return self.clients.failure(doing, KafkaException(error))


Place = tuple[int, int]


def _place(message: Message) -> Place:
    partition, offset = message.partition(), message.offset()
    assert partition is not None and offset is not None  # noqa: S101, PT018  (every message that was read has both)
    return partition, offset


class _Batch:
    """The messages that are worked on at the same time, and which of them are done."""

    def __init__(self, stream: Stream, ends: float) -> None:
        self.stream = stream
        self.ends = ends
        self.done: set[Place] = set()
        self.problem: Exception | None = None
        self.refusal = ""
        self._too_large: list[Callable[[], Awaitable[None]]] = []  # what to do instead, by record
        self._answers = RequestAnswers(stream.group, stream.answerer)

    async def handle(self, message: Message) -> None:
        """Do what is to be done with one message, unless something is in the way of all."""
        async with self.stream._free:
            if self.problem or time.monotonic() > self.ends:
                return
            try:
                await self._handle(message)
            except Exception as error:
                self.problem = self.problem or error

    async def deliver(self) -> None:
        """Wait until the broker has all. What is too large for its topic takes another way, which ends: a reply becomes
        a dead letter, and a dead letter one that points to the storage."""
        await asyncio.to_thread(self.stream.sender.flush)
        while self._too_large:
            instead, self._too_large = self._too_large, []
            for step in instead:
                try:
                    await step()
                except Exception as error:
                    self.problem = self.problem or error
            await asyncio.to_thread(self.stream.sender.flush)

    async def _handle(self, message: Message) -> None:
        request, error = read_request(message.value())
        if request is None:
            self._bury(message, error or "")
            return
        try:
            reply = await self._answers.reply(request, self._name(message))
        except Unanswerable as reason:
            self._bury(message, str(reason))
            return
        if reply is None:
            self._settle(message, "repeated")  # the first message with this id gets the reply
        elif not request.reply.wanted:
            self._settle(message, "answered")
        elif reply.answered_at < self.stream.began_at and await asyncio.to_thread(
            self.stream.sent.holds, reply.request_id, reply.answered_at
        ):
            self._settle(message, "repeated")
        else:
            value = reply.model_dump_json().encode()
            record = {"topic": REPLIES, "key": request.request_id, "value": value}
            self._send(
                message, "answered", record, lambda: self._bury_answered(message, request.request_id, len(value))
            )

    def _name(self, message: Message) -> str:
        partition, offset = _place(message)
        return f"{self.stream.topic}[{partition}] at {offset}"

    def _bury(self, message: Message, reason: str) -> None:
        log.warning("%s: %s", self._name(message), reason)
        record = dead_letter(DEAD_LETTERS, message, reason)
        self._send(message, "dead-lettered", record, lambda: self._bury_in_storage(message, reason))

    async def _bury_in_storage(self, message: Message, reason: str) -> None:
        log.warning(
            "%s: too large for the topic %r, so that its dead letter is on storage", self._name(message), DEAD_LETTERS
        )
        self._send(message, "dead-lettered", await asyncio.to_thread(stored_dead_letter, DEAD_LETTERS, message, reason))

    async def _bury_answered(self, message: Message, request_id: str, size: int) -> None:
        stored_at = await self._answers.release(request_id)
        self._bury(message, f"its reply is too large for {REPLIES!r} ({size} bytes); the answer is stored: {stored_at}")

    def _settle(self, message: Message, outcome: str) -> None:
        self.done.add(_place(message))
        self.stream.counts[outcome] += 1

    def _send(
        self,
        message: Message,
        outcome: str,
        record: dict[str, Any],
        too_large: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Send a record; the message is done when the broker has acknowledged it.

        :param too_large: what to do instead if the record is too large for its topic.
        """

        def done(error: Any, _: Any) -> None:
            if error is None:
                self._settle(message, outcome)
            elif too_large and is_too_large(error):
                self._too_large.append(too_large)
            else:
                self.refusal = f"the topic {record['topic']!r} did not take a message: {error.str()}"

        self.stream.sender.send(record, done)
