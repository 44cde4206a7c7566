"""Send requests to the DAGs that wait for messages, as another system would, and show the replies.

make send N=20                          to stream_inference
make send N=3 DAG=event_driven_inference
make send N=3 DAG=sqs_inference         through the embedded fake of Amazon SQS
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, KafkaException, Producer, TopicPartition

from include.messages.contract import EVENT_REQUESTS, REPLIES, STREAM_REQUESTS, Request, new_request
from include.sample.data import tickets
from local.arguments import number, whole_number
from local.environment import DEFAULT_HOME, user_environment, uses_embedded_queue
from local.kafka_broker import broker_connection
from local.processes import StackError
from local.sqs_server import sqs_client
from local.stack import Stack

SQS_DAG = "sqs_inference"
TOPICS = {"stream_inference": STREAM_REQUESTS, "event_driven_inference": EVENT_REQUESTS}
TIMEOUT_S = 20.0
MOST_MESSAGES = 100_000
NOT_A_REQUEST = b'{"text": "I forgot the other fields."}'


def client_settings(stack: Stack) -> dict[str, Any]:
    """Return settings for the broker of the stack: the embedded one, or that of the user's connection `kafka_default`.

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


def queue_of(stack: Stack) -> str:
    """Return the URL of the queue of requests on the embedded fake of Amazon SQS.

    :raises StackError: the stack reads another queue.
    """
    if not uses_embedded_queue(user_environment()):
        raise StackError(
            "The stack does not read the embedded queue, as GENAI_SQS_QUEUE or AIRFLOW_CONN_AWS_DEFAULT is set."
        )
    return stack.queue


def sample_requests(number: int) -> list[Request]:
    """Return requests with texts of the sample tickets."""
    return [new_request(ticket["text"]) for ticket in itertools.islice(itertools.cycle(tickets()), number)]


def send(settings: dict[str, Any], topic: str, number: int, malformed: int = 0) -> list[str]:
    """Send sample requests, and some messages that are not requests, to a topic; return the requests' ids.

    :raises StackError: the broker does not accept them.
    """
    requests = sample_requests(number)
    refused: list[Any] = []
    # With the id as the key, requests of one id are on one partition, and so in order.
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


def send_to_queue(queue: str, number: int, malformed: int = 0) -> list[str]:
    """Send as `send` does, but to a queue of the embedded fake of Amazon SQS."""
    requests = sample_requests(number)
    client = sqs_client(queue)
    for body in [*(request.model_dump_json() for request in requests), *[NOT_A_REQUEST.decode()] * malformed]:
        # After a delay they become visible together, so that one poll finds them all.
        client.send_message(QueueUrl=queue, MessageBody=body, DelaySeconds=1)
    return [request.request_id for request in requests]


def send_to(stack: Stack, dag_id: str, number: int, malformed: int = 0) -> list[str]:
    """Send as `send` does, to where this DAG waits for messages."""
    if dag_id == SQS_DAG:
        return send_to_queue(queue_of(stack), number, malformed)
    return send(client_settings(stack), TOPICS[dag_id], number, malformed)


# New replies, as they come; None where there is none yet. After the first None, no new reply is missed.
Replies = Iterator[dict[str, Any] | None]


def kafka_replies(settings: dict[str, Any]) -> Replies:
    with closing(Consumer({**settings, "group.id": "send", "enable.auto.commit": False})) as consumer:
        partitions = consumer.list_topics(REPLIES, timeout=TIMEOUT_S).topics[REPLIES].partitions
        consumer.assign([TopicPartition(REPLIES, number, OFFSET_END) for number in partitions])
        consumer.poll(1.0)  # from here on
        yield None
        while True:
            message = consumer.poll(0.5)
            yield None if message is None or message.error() else json.loads(message.value() or b"{}")


def queue_replies(queue: str) -> Replies:
    client, replies = sqs_client(queue), f"{queue}-replies"
    while True:
        yield None
        found = client.receive_message(QueueUrl=replies, WaitTimeSeconds=1, MaxNumberOfMessages=10)
        for message in found.get("Messages", []):
            client.delete_message(QueueUrl=replies, ReceiptHandle=message["ReceiptHandle"])
            yield json.loads(message["Body"])


def show_replies(replies: Replies, send_them: Callable[[], list[str]], timeout: float) -> int:
    """Print each reply once, until all have come or the time is up; return how many are missing."""
    next(replies)
    started = time.monotonic()
    waiting = set(send_them())
    for reply in replies:
        if reply and reply.get("request_id") in waiting:
            waiting.discard(reply["request_id"])
            print(f"{time.monotonic() - started:5.1f} s  {json.dumps(reply['answer'], ensure_ascii=False)}", flush=True)
        if not waiting or time.monotonic() > started + timeout:
            break
    return len(waiting)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.send", description=__doc__)
    how_many = whole_number("N", 1, MOST_MESSAGES)
    parser.add_argument("--number", type=how_many, default=20, help="how many (default: %(default)s)")
    parser.add_argument(
        "--dag", choices=[*TOPICS, SQS_DAG], default="stream_inference", help="to which (default: %(default)s)"
    )
    seconds = number("TIMEOUT", 0, 86_400)
    parser.add_argument(
        "--timeout", type=seconds, default=300, help="seconds to wait for replies (default: %(default)s)"
    )
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME, help="folder of the stack (default: .local)")
    arguments = parser.parse_args()
    stack = Stack(arguments.home)
    try:
        if not stack.attach():
            raise StackError("No stack is running: run `make start` first.")
        replies = queue_replies(queue_of(stack)) if arguments.dag == SQS_DAG else kafka_replies(client_settings(stack))
        missing = show_replies(replies, lambda: send_to(stack, arguments.dag, arguments.number), arguments.timeout)
    except (StackError, KafkaException) as error:
        sys.exit(f"Nothing can be sent: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted.")
    if missing:
        sys.exit(f"{missing} replies did not come within {arguments.timeout:.0f} s.")


if __name__ == "__main__":
    main()
