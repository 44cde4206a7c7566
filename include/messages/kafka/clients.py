"""Kafka as an Airflow connection: clients with its settings, and errors that say what to do.

The connection's extra holds librdkafka's settings (`bootstrap.servers`, TLS, SASL, ...). What makes a reader or writer
safe is set here and cannot be forgotten there: no automatic commits, no topics made by a typing error, acknowledged
writes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.apache.kafka.hooks.base import KafkaBaseHook
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowNotFoundException

from include.common.shown import shown_url

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaException, Producer

KAFKA_CONN_ID = "kafka_default"
METADATA_TIMEOUT_S = 10.0
DELIVERY_TIMEOUT_S = 30.0
# The partitions of a consumer that was killed go to another after this time, unless the connection sets another.
SESSION_TIMEOUT_MS = 10_000

log = logging.getLogger(__name__)


class _Settings(KafkaBaseHook):
    """The provider's hook, for its settings: callbacks by name and the tokens of managed services are resolved."""

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
        # Kept apart from what is a task's own log; what matters of it, the errors here say.
        self._config = {"log_level": 0, "error_cb": _note, **config}

    def __str__(self) -> str:
        return f"Connection {self.conn_id!r} (broker {shown_url(self._config['bootstrap.servers'])})"

    def consumer(self, group: str, settings: Mapping[str, Any] | None = None) -> Consumer:
        """A consumer of this group that commits what it is told to, and starts with the oldest message."""
        from confluent_kafka import Consumer

        own = {
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "allow.auto.create.topics": False,
        }
        return Consumer({"session.timeout.ms": SESSION_TIMEOUT_MS, **self._config, **own, **(settings or {})})

    def producer(self) -> Producer:
        """A producer whose messages all in-sync replicas have acknowledged when they count as delivered."""
        from confluent_kafka import Producer

        of_consumers = ("group.", "session.", "heartbeat.", "max.poll.", "auto.", "fetch.", "enable.auto.")
        config = {key: value for key, value in self._config.items() if not key.startswith(of_consumers)}
        own = {
            "acks": "all",
            "enable.idempotence": True,
            "allow.auto.create.topics": False,
            "delivery.timeout.ms": int(DELIVERY_TIMEOUT_S * 1000),
            # The topic's own limit is the one that counts. It is for compressed records, and this one for others.
            "message.max.bytes": 100 * 2**20,
        }
        # What came compressed would be too large for its topic otherwise when it is sent on.
        return Producer({"compression.type": "zstd", **config, **own})

    def partitions(self, client: Consumer | Producer, *topics: str) -> dict[str, int]:
        """The number of partitions by topic.

        :raises AirflowException: the broker cannot be reached, or a topic does not exist.
        """
        from confluent_kafka import KafkaException

        counts = {}
        for topic in topics:
            try:
                found = client.list_topics(topic, timeout=METADATA_TIMEOUT_S).topics[topic]
            except KafkaException as error:
                raise self.failure("asking for its topics", error) from None
            if found.error is not None:
                raise AirflowException(
                    f"{self}: the topic {topic!r} cannot be used ({found.error.str()}). Create it, or allow this "
                    "client to use it: nothing was lost, and the next run goes on."
                )
            counts[topic] = len(found.partitions)
        return counts

    def failure(self, doing: str, error: KafkaException) -> AirflowException:
        """What to raise when the broker fails; the next try may succeed."""
        reason = error.args[0]
        return AirflowException(
            f"{self}: {doing} failed: {reason.str()}. Is it running, and are host and login right? Nothing was lost: "
            "what is not committed is read again."
        )


def _note(error: Any) -> None:
    log.debug("Kafka client: %s", error)
