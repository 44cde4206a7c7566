"""Which requests have their reply on the topic already, so that a run that goes on after a kill sends none twice."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta

from include.messages.contract import REPLIES
from include.messages.kafka.clients import METADATA_TIMEOUT_S, KafkaClients

# The clocks of workers and broker may differ by so much.
CLOCKS = timedelta(minutes=1)
LONGEST_READ_S = 60.0


class SentReplies:
    """The replies that were sent since an answer was given. The topic is read when somebody first asks.

    :param group: the consumer group that may read the topic; nothing is committed.
    """

    def __init__(self, clients: KafkaClients, group: str) -> None:
        self._clients = clients
        self._group = group
        self._lock = threading.Lock()
        self._since: datetime | None = None
        self._ids: set[str] = set()

    def holds(self, request_id: str, answered_at: datetime) -> bool:
        """Whether the reply with this answer is on the topic.

        :raises AirflowException: the topic cannot be read.
        """
        with self._lock:
            if self._since is None or answered_at - CLOCKS < self._since:
                self._since = answered_at - CLOCKS
                self._ids = self._read(self._since)
        return request_id in self._ids

    def _read(self, since: datetime) -> set[str]:
        from confluent_kafka import KafkaError, KafkaException, TopicPartition

        consumer = self._clients.consumer(self._group, {"enable.partition.eof": True})
        try:
            count = self._clients.partitions(consumer, REPLIES)[REPLIES]
            at = int(since.timestamp() * 1000)
            wanted = [TopicPartition(REPLIES, partition, at) for partition in range(count)]
            starts = [each for each in consumer.offsets_for_times(wanted, METADATA_TIMEOUT_S) if each.offset >= 0]
            consumer.assign(starts)
            found: set[str] = set()
            unread = {each.partition for each in starts}
            deadline = time.monotonic() + LONGEST_READ_S
            while unread:
                if time.monotonic() > deadline:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
                for message in consumer.consume(500, 0.2):
                    error = message.error()
                    if error is None:
                        found.add((message.key() or b"").decode(errors="replace"))
                    elif error.code() == KafkaError._PARTITION_EOF:
                        unread.discard(message.partition())
                    else:
                        raise KafkaException(error)
            return found
        except KafkaException as error:
            raise self._clients.failure(f"reading the topic {REPLIES!r}", error) from None
        finally:
            consumer.close()
