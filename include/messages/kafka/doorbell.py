"""The trigger that fires when a topic has messages that a consumer group has not committed."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from include.common.triggerer import ask_airflow

if TYPE_CHECKING:
    from confluent_kafka import Consumer

    from include.messages.kafka.clients import KafkaClients

Found = TypeVar("Found")

# The first message after a pause rings at once; a stream of them rings this often, as one run answers many.
PAUSE_S = 5.0
# While a run reads, it gets new messages itself: how often to check whether it still reads.
READER_PAUSE_S = 1.0
# What is not committed after this time rings again: an event can get lost, and a run can fail.
RING_AGAIN_S = 20.0
TROUBLE_PAUSE_S = 5.0
# A lasting error is logged once, and other errors at most this often.
SAY_AGAIN_S = 60.0


class KafkaDoorbellTrigger(BaseEventTrigger):
    """Ring for messages of `topic` after the offset that `group` has committed.

    It only watches the group and is not a member of it: it commits nothing, so it loses nothing, and two of them only
    ring twice. It does not ring while a member of the group is alive, as that reads all messages; the broker notices
    the death of a member after its session time-out. It never ends. If a broker is down or a topic is missing, it logs
    that once and waits.

    :param topic: the topic to watch.
    :param group: the consumer group of the runs that answer the messages.
    :param kafka_config_id: the Airflow connection.
    """

    def __init__(self, *, topic: str, group: str, kafka_config_id: str) -> None:
        super().__init__()
        self.topic = topic
        self.group = group
        self.kafka_config_id = kafka_config_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments of this trigger."""
        names = ("topic", "group", "kafka_config_id")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Ring until the trigger is cancelled."""
        said, said_at = "", -math.inf
        while True:
            try:
                async for event in self._rings():
                    said = ""
                    yield event
            except Exception as trouble:
                if str(trouble) != said and time.monotonic() - said_at >= SAY_AGAIN_S:
                    said, said_at = str(trouble), time.monotonic()
                    self.log.error("The doorbell of %s waits: %s", self.topic, said)
                await asyncio.sleep(TROUBLE_PAUSE_S)

    async def _rings(self) -> AsyncIterator[TriggerEvent]:
        """Ring until the number of partitions changes.

        :raises AirflowException: the broker fails, or a message cannot be read.
        """
        # librdkafka is a C library: the triggerer loads it here, the DAG file does not.
        from confluent_kafka import KafkaError

        from include.messages.kafka.clients import KafkaClients

        clients = await ask_airflow(KafkaClients, self.kafka_config_id)
        with _Watch() as watch:
            consumer = watch.consumer = await watch.call(
                lambda: clients.consumer(self.group, {"queued.max.messages.kbytes": 1024})
            )
            count = await watch.call(lambda: self._start(clients, consumer))
            waiting, read, next_ring, checked_at = False, False, 0.0, time.monotonic()
            seen: dict[int, int] = {}
            while True:
                for message in await watch.call(lambda: consumer.consume(500, 0.25)):
                    error = message.error()
                    if not error:
                        waiting = True
                        seen[message.partition() or 0] = (message.offset() or 0) + 1
                    elif error.code() == KafkaError._BAD_COMPRESSION:
                        # This consumer cannot pass this message; one that starts after the next commit can.
                        yield TriggerEvent({"topic": self.topic})
                        raise clients.failure("reading a message", error)
                now = time.monotonic()
                if now - checked_at > RING_AGAIN_S:
                    checked_at = now
                    waiting = waiting or await watch.call(lambda: self._is_behind(clients, consumer, seen))
                    if count != await watch.call(lambda: clients.partitions(consumer, self.topic)[self.topic]):
                        return
                if not waiting or now < next_ring:
                    continue
                if await watch.call(lambda: clients.has_reader(self.group)):
                    read, next_ring = True, now + READER_PAUSE_S
                elif read and not await watch.call(lambda: self._is_behind(clients, consumer, seen)):
                    waiting, read = False, False
                else:
                    waiting, read, next_ring = False, False, now + PAUSE_S
                    yield TriggerEvent({"topic": self.topic})

    def _start(self, clients: KafkaClients, consumer: Consumer) -> int:
        """Start at the committed offsets; return the number of partitions."""
        from confluent_kafka import OFFSET_BEGINNING, TopicPartition

        count = clients.partitions(consumer, self.topic)[self.topic]
        committed = clients.committed(consumer, self.topic, range(count))
        consumer.assign(
            [
                TopicPartition(self.topic, partition, offset if offset >= 0 else OFFSET_BEGINNING)
                for partition, offset in committed.items()
            ]
        )
        return count

    def _is_behind(self, clients: KafkaClients, consumer: Consumer, seen: Mapping[int, int]) -> bool:
        """Return whether a run would get a message: one that was seen here, is not committed and still exists.

        Offsets alone are not enough: some are those of a transaction's markers, or of deleted messages.

        :param seen: by partition, the offset after the last message that this consumer got.
        """
        from confluent_kafka import TopicPartition

        from include.messages.kafka.clients import METADATA_TIMEOUT_S

        found = clients.committed(consumer, self.topic, list(seen)) if seen else {}
        for partition, committed in found.items():
            if seen[partition] > committed:
                with clients.failing("asking for the oldest message"):
                    place = TopicPartition(self.topic, partition)
                    oldest, _ = consumer.get_watermark_offsets(place, METADATA_TIMEOUT_S)
                if seen[partition] > oldest:
                    return True
        return False


class _Watch:
    """A thread for one consumer: it blocks no other trigger, and the consumer is closed while no call uses it."""

    def __init__(self) -> None:
        self.consumer: Consumer | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kafka-doorbell")

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        if self.consumer:
            self._thread.submit(self.consumer.close)
        self._thread.shutdown(wait=False)

    async def call(self, function: Callable[[], Found]) -> Found:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)
