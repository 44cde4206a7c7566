"""Kafka brokers for tests: the embedded one, and Apache Kafka itself where it is available.

Apache Kafka is the broker that KAFKA_BOOTSTRAP_SERVERS names, or one that is started from its Maven artifacts where
`java` and `mvn` are found: KRaft mode, a temporary folder, 127.0.0.1.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from include.messages.kafka.dead_letters import PREFIX
from local.kafka_broker import broker_command, create_topics
from local.processes import free_ports

KAFKA_VERSION = "4.3.1"
HEAP = ["-Xms128m", "-Xmx384m", "-XX:TieredStopAtLevel=1"]
POM = f"""
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>tests</groupId><artifactId>kafka</artifactId><version>1</version>
<dependencies><dependency>
<groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version>
</dependency></dependencies></project>
"""
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
auto.create.topics.enable=false
message.max.bytes=16777216
log.dirs={folder}/data
"""


class NoKafka(Exception):
    """Apache Kafka is not available here; the message says why."""


@dataclass
class Broker:
    """A broker, with what tests do with it.

    :param command: how to start it, for one that the tests may kill.
    """

    bootstrap: str
    name: str
    folder: Path | None = None
    command: Sequence[str] = ()
    process: psutil.Popen | None = field(default=None, repr=False)

    @property
    def keeps_messages(self) -> bool:
        """Whether messages survive a restart: the embedded broker keeps them in memory."""
        return self.name == "Apache Kafka"

    @property
    def keeps_limits(self) -> bool:
        """Whether it rejects messages larger than a topic allows: the embedded broker accepts all."""
        return self.name == "Apache Kafka"

    def start(self) -> None:
        assert self.folder
        log = (self.folder / "broker.log").open("ab")
        self.process = psutil.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.wait()

    def wait(self, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while not create_topics(self.bootstrap):
            assert time.monotonic() < deadline, f"{self.name} does not answer"
            assert self.process is None or self.process.is_running(), f"{self.name} has ended: see {self.folder}"
            time.sleep(0.2)

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait(20)

    def stop(self) -> None:
        assert self.process
        self.process.resume()
        self.process.terminate()
        try:
            self.process.wait(20)
        except psutil.TimeoutExpired:
            self.kill()

    def producer(self, **settings: Any) -> Producer:
        return Producer(
            {"bootstrap.servers": self.bootstrap, "message.max.bytes": 100 * 2**20, "log_level": 0, **settings}
        )

    def send(
        self, topic: str, values: Sequence[bytes | None], settings: Mapping[str, Any] | None = None, **record: Any
    ) -> None:
        """Put these values on the topic and check that the broker has them."""
        refused: list[Any] = []
        producer = self.producer(**(settings or {}))
        for value in values:
            producer.produce(
                topic, value, **record, on_delivery=lambda error, _: refused.append(error) if error else None
            )
        assert producer.flush(30) == 0
        assert refused == []

    def read(self, topic: str) -> list[Message]:
        """Return all messages on the topic."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": uuid4().hex,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "log_level": 0,
            }
        )
        partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        found: list[Message] = []
        at_end: set[int] = set()
        deadline = time.monotonic() + 60
        while at_end < set(partitions):
            assert time.monotonic() < deadline, f"{topic} cannot be read to its end"
            for message in consumer.consume(500, 0.1):
                if message.error() and message.error().code() == KafkaError._PARTITION_EOF:
                    at_end.add(message.partition())
                elif not message.error():
                    found.append(message)
        consumer.close()
        return found

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Return the committed offset by partition, where there is one."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": group, "log_level": 0})
        partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
        offsets = consumer.committed([TopicPartition(topic, number) for number in partitions], timeout=20)
        consumer.close()
        return {each.partition: each.offset for each in offsets if each.offset >= 0}

    def create_topic(self, name: str, partitions: int = 1, **config: str) -> None:
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        for created in admin.create_topics([NewTopic(name, partitions, 1, config=config)]).values():
            created.result(20)


def position(message: Message) -> tuple[str, int, int]:
    """Return where a dead letter came from: topic, partition and offset of the original."""
    headers = dict(message.headers() or [])
    topic, partition, offset = (headers[f"{PREFIX}{name}"].decode() for name in ("topic", "partition", "offset"))
    return topic, int(partition), int(offset)


@contextmanager
def embedded_broker(folder: Path) -> Iterator[Broker]:
    (port,) = free_ports(1)
    broker = Broker(f"127.0.0.1:{port}", "the embedded broker", folder, broker_command(folder, port))
    yield from _running(broker)


@contextmanager
def apache_kafka(folder: Path) -> Iterator[Broker]:
    """:raises NoKafka: there is neither a broker that the environment names, nor Java and Maven to start one."""
    if bootstrap := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        broker = Broker(bootstrap, "Apache Kafka")
        broker.wait()
        yield broker
        return
    java, maven = shutil.which("java"), shutil.which("mvn")
    if not java or not maven:
        raise NoKafka("java and mvn (Maven) are not both found, and KAFKA_BOOTSTRAP_SERVERS is not set")
    libraries = _libraries(maven)
    port, controller = free_ports(2)
    folder.mkdir(parents=True, exist_ok=True)
    properties = folder / "server.properties"
    properties.write_text(PROPERTIES.format(port=port, controller=controller, folder=folder))
    start = [java, *HEAP, "-cp", f"{libraries}/*"]
    format_storage = [
        *start,
        "kafka.tools.StorageTool",
        "format",
        "-t",
        "dGVzdHMtb2YtdGhlLWdlbg",
        "-c",
        str(properties),
    ]
    formatted = subprocess.run(format_storage, capture_output=True, text=True, timeout=600)
    assert formatted.returncode == 0, formatted.stdout + formatted.stderr
    broker = Broker(f"127.0.0.1:{port}", "Apache Kafka", folder, [*start, "kafka.Kafka", str(properties)])
    yield from _running(broker)


@contextmanager
def best_broker(folder: Path) -> Iterator[Broker]:
    """Run Apache Kafka or, with a note on stdout, the embedded broker where it is not available."""
    with ExitStack() as stack:
        try:
            broker = stack.enter_context(apache_kafka(folder))
        except NoKafka as reason:
            print(f"NOT ON APACHE KAFKA, but on the embedded broker: {reason}")
            broker = stack.enter_context(embedded_broker(folder))
        yield broker


def _running(broker: Broker) -> Iterator[Broker]:
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def _libraries(maven: str) -> Path:
    """Return the folder with Kafka's jar files, which Maven fills once."""
    folder = Path.home() / ".cache" / "genai-template-tests" / f"kafka-{KAFKA_VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    complete = folder / "complete"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed: several test processes start at once
        if not complete.exists():
            (folder / "pom.xml").write_text(POM)
            copied = subprocess.run(
                [maven, "-q", "-B", COPY, f"-DoutputDirectory={folder / 'libs'}"],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=600,
            )
            if copied.returncode:
                raise NoKafka(f"Maven cannot get Kafka {KAFKA_VERSION}: {copied.stdout[-300:]}")
            complete.touch()
    return folder / "libs"
