"""Kafka clients with the settings of an Airflow connection, and errors that say what to do.

The connection's extra has librdkafka's settings (`bootstrap.servers`, TLS, SASL, ...). Settings that make reading and
writing safe are made here, so that a connection cannot omit them: no automatic commits, no topics created by a typo,
acknowledged writes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from airflow.providers.apache.kafka.hooks.base import KafkaBaseHook
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowNotFoundException
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from include.common.shown import shown_url

KAFKA_CONN_ID = "kafka_default"
METADATA_TIMEOUT_S = 10.0
DELIVERY_TIMEOUT_MS = 30_000
# After this time the partitions of a killed consumer go to another, unless the connection sets another time.
SESSION_TIMEOUT_MS = 10_000
# A broker that has just started, or taken over, does not know a group yet: how long to ask it, and the pause.
COORDINATOR_S, COORDINATOR_PAUSE_S = 30.0, 0.5
NO_COORDINATOR = (
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
)
# A consumer cannot decompress more than `receive.message.max.bytes`, which is 100,000,000 unless set otherwise.
LARGEST_RECORD = 99_000_000

log = logging.getLogger(__name__)


class _Settings(KafkaBaseHook):
    """The provider's hook, for its settings: it resolves callbacks by name and the tokens of managed services."""

    def _get_client(self, config: dict[str, Any]) -> dict[str, Any]:
        return config


class KafkaClients:
    """Clients of the broker of a connection.

    :param conn_id: see the module.
    :raises AirflowFailException: the connection does not exist, or names no broker.
    """

    def __init__(self, conn_id: str = KAFKA_CONN_ID) -> None:
        self.conn_id = conn_id
        try:
            config = dict(_Settings(conn_id).get_conn)  # type: ignore[no-untyped-call]
        except AirflowNotFoundException:
            raise AirflowFailException(
                f"No broker: there is no Airflow connection {conn_id!r}. Create it with the type kafka and "
                'the extra {"bootstrap.servers": "<host>:9092", "group.id": "<name>"}.'
            ) from None
        except ValueError as error:
            raise AirflowFailException(f"Connection {conn_id!r}: {error} Set it in the connection's extra.") from None
        # librdkafka's own log is off: the errors here say what matters. While no broker answers, it would by default
        # start again with the first address many times a second; without that it waits up to 10 s.
        quiet = {"log_level": 0, "error_cb": _note, "metadata.recovery.strategy": "none"}
        self._config = {**quiet, **config}

    def __str__(self) -> str:
        return f"Connection {self.conn_id!r} (broker {shown_url(self._config['bootstrap.servers'])})"

    def consumer(self, group: str, settings: Mapping[str, Any]) -> Consumer:
        """Make a consumer of this group that starts with the oldest message and commits nothing by itself."""
        own = {
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "allow.auto.create.topics": False,
        }
        return Consumer({"session.timeout.ms": SESSION_TIMEOUT_MS, **self._config, **own, **settings})

    def producer(self, settings: Mapping[str, Any]) -> Producer:
        """Make a producer that reports a message as delivered when all in-sync replicas have it."""
        own = {
            "acks": "all",
            "enable.idempotence": True,
            "allow.auto.create.topics": False,
            "delivery.timeout.ms": DELIVERY_TIMEOUT_MS,
            # The topic's own limit, which is for compressed records, is the one that counts; this one is for others.
            "message.max.bytes": LARGEST_RECORD,
        }
        # Otherwise a message that was received compressed could be too large for a topic when it is sent on.
        return Producer({"compression.type": "zstd", **self._config, **own, **settings})

    def has_reader(self, group: str) -> bool:
        """Return whether a consumer of this group is alive, as far as the broker knows.

        A killed one counts as alive until its session time-out. The embedded broker lists no consumers.

        :raises AirflowException: the broker cannot be reached.
        """
        admin = AdminClient(self._config)  # must outlive its answer
        deadline = time.monotonic() + COORDINATOR_S
        with self.failing(f"asking who reads as {group!r}"):
            while True:
                try:
                    described = admin.describe_consumer_groups([group], request_timeout=METADATA_TIMEOUT_S)
                    return bool(described[group].result().members)
                except KafkaException as error:
                    if error.args[0].code() not in NO_COORDINATOR or time.monotonic() > deadline:
                        raise
                time.sleep(COORDINATOR_PAUSE_S)

    def partitions(self, client: Consumer | Producer, *topics: str) -> dict[str, int]:
        """Return the number of partitions by topic.

        :raises AirflowException: the broker cannot be reached, or a topic does not exist.
        """
        counts = {}
        for topic in topics:
            with self.failing("asking for its topics"):
                found = client.list_topics(topic, timeout=METADATA_TIMEOUT_S).topics[topic]
            if found.error is not None:
                raise AirflowException(
                    f"{self}: the topic {topic!r} cannot be used ({found.error.str()}). Create it, or allow this "
                    "client to use it: nothing was lost, and the next run continues."
                )
            counts[topic] = len(found.partitions)
        return counts

    def committed(self, consumer: Consumer, topic: str, partitions: Sequence[int]) -> dict[int, int]:
        """Return the offset that the consumer's group has committed, by partition; negative if there is none.

        :raises AirflowException: the broker cannot be reached.
        """
        wanted = [TopicPartition(topic, partition) for partition in partitions]
        with self.failing("asking for the committed offsets"):
            return {each.partition: each.offset for each in consumer.committed(wanted, METADATA_TIMEOUT_S)}

    @contextmanager
    def failing(self, doing: str) -> Iterator[None]:
        """Raise `failure` for an error of the client."""
        try:
            yield
        except KafkaException as error:
            raise self.failure(doing, error.args[0]) from None

    def failure(self, doing: str, error: Any) -> AirflowException:
        """Return what to raise when the broker fails (a `KafkaError`); the next try may succeed."""
        return AirflowException(
            f"{self}: {doing} failed: {error.str()} ({error.name()}). Is it running, and are host and login right? "
            "Nothing was lost: what is not committed is read again."
        )


def _note(error: Any) -> None:
    log.debug("Kafka client: %s", error)
