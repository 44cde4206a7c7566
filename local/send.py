"""Send requests to the DAGs that wait for messages, as another system would, and show the replies.

make send N=20                          to stream_inference
make send N=3 DAG=event_driven_inference
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, KafkaException, Producer, TopicPartition

from include.kafka_messages import EVENT_REQUESTS, REPLIES, STREAM_REQUESTS, new_request
from include.sample_data import tickets
from local.environment import DEFAULT_HOME, user_environment
from local.kafka_broker import broker_connection
from local.processes import StackError
from local.stack import Stack

TOPICS = {"stream_inference": STREAM_REQUESTS, "event_driven_inference": EVENT_REQUESTS}
TIMEOUT_S = 20.0
NOT_A_REQUEST = b'{"text": "I forgot the other fields."}'


def client_settings(stack: Stack) -> dict[str, Any]:
    """How to reach the broker of the stack: the embedded one, or that of the user's connection `kafka_default`.

    :raises StackError: the connection is not written as JSON.
    """
    connection = user_environment().get("AIRFLOW_CONN_KAFKA_DEFAULT") or broker_connection(stack.broker)
    try:
        extra = json.loads(connection)["extra"]
        settings = json.loads(extra) if isinstance(extra, str) else dict(extra)
    except (ValueError, KeyError, TypeError):
        raise StackError(
            'AIRFLOW_CONN_KAFKA_DEFAULT must be JSON, as {"conn_type": "kafka", "extra": {...}}.'
        ) from None
    return {"log_level": 0, **{key: value for key, value in settings.items() if not key.startswith("group.")}}


def send(settings: dict[str, Any], topic: str, number: int, malformed: int = 0) -> list[str]:
    """Send requests with texts of the sample tickets, and some that are no requests; return their ids.

    :raises StackError: the broker does not take them.
    """
    requests = [new_request(ticket["text"]) for ticket in itertools.islice(itertools.cycle(tickets()), number)]
    refused: list[Any] = []
    # The id as the key keeps those of the same id in order, on one partition.
    records: list[tuple[str | None, bytes]] = [
        (request.request_id, request.model_dump_json().encode()) for request in requests
    ]
    records += [(None, NOT_A_REQUEST)] * malformed
    try:
        producer = Producer(settings)
        for key, value in records:
            producer.produce(topic, value, key, on_delivery=lambda error, _: refused.append(error) if error else None)
        late = producer.flush(TIMEOUT_S)
    except KafkaException as error:
        raise StackError(f"The broker cannot be used: {error}") from None
    if late or refused:
        raise StackError(f"The broker did not take the messages: {refused[0] if refused else 'it does not answer'}")
    return [request.request_id for request in requests]


def show_replies(settings: dict[str, Any], send_them: Any, timeout: float) -> int:
    """Print each reply once, until all have come or the time is over; return how many are missing."""
    consumer = Consumer({**settings, "group.id": "send", "enable.auto.commit": False})
    partitions = consumer.list_topics(REPLIES, timeout=TIMEOUT_S).topics[REPLIES].partitions
    consumer.assign([TopicPartition(REPLIES, number, OFFSET_END) for number in partitions])
    consumer.poll(1.0)  # from here on
    started = time.monotonic()
    waiting = set(send_them())
    while waiting and time.monotonic() < started + timeout:
        message = consumer.poll(0.5)
        if message is None or message.error():
            continue
        reply = json.loads(message.value() or b"{}")
        if reply.get("request_id") in waiting:
            waiting.discard(reply["request_id"])
            print(f"{time.monotonic() - started:5.1f} s  {json.dumps(reply['answer'], ensure_ascii=False)}", flush=True)
    consumer.close()
    return len(waiting)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.send", description=__doc__)
    parser.add_argument("--number", type=int, default=20, help="how many (default: %(default)s)")
    parser.add_argument("--dag", choices=TOPICS, default="stream_inference", help="whose topic (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds to wait for replies (default: %(default)s)")
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME, help="folder of the stack (default: .local)")
    arguments = parser.parse_args()
    stack = Stack(arguments.home)
    try:
        if not stack.attach():
            raise StackError("No stack is running: first `make start`.")
        settings = client_settings(stack)
        topic = TOPICS[arguments.dag]
        missing = show_replies(settings, lambda: send(settings, topic, arguments.number), arguments.timeout)
    except (StackError, KafkaException) as error:
        sys.exit(f"Nothing can be sent: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted.")
    if missing:
        sys.exit(f"{missing} replies have not come within {arguments.timeout:.0f} s.")


if __name__ == "__main__":
    main()
