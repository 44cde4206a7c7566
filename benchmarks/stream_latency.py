"""How long a message on Kafka waits for its answer: `stream_inference`, a bare consumer, `event_driven_inference`.

    python -m benchmarks.stream_latency

Each line has the seconds from sending a message to its stored answer: of messages one by one on an idle stack, or of a
burst. A burst also has the answers a second, from the first message to the last answer. The bare consumer is what one
would write by hand with asyncio, and runs all the time. The model is a fake, over real HTTP, that takes 0 or 300 ms;
the broker is Apache Kafka where Java and Maven are found.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from benchmarks.stack import MeasuredStack, measured_stack
from benchmarks.stream_kills import settings
from include.messages.contract import EVENT_REQUESTS, REPLIES, STREAM_REQUESTS, Request, new_request
from local.send import kafka_replies
from tests.kafka import Broker, best_broker
from tests.scripted_model import ScriptedServer, running

BARE_REQUESTS = "bare_requests"
IN_FLIGHT = 16  # the default of stream_inference
BURST = 500
IDLE_MESSAGES = 5
IDLE_PAUSE_S = 12.0  # by then a run that found nothing more has ended
EVENT_BURST = 20  # more would take minutes

BARE = """
import asyncio, json, sys
from datetime import UTC, datetime
from pathlib import Path
from confluent_kafka import Consumer, Producer
from openai import AsyncOpenAI

bootstrap, url, topic, replies, folder, in_flight = sys.argv[1:]
properties = {"category": {"enum": ["billing", "technical", "account"]}, "summary": {"type": "string"}}
parameters = {"type": "object", "properties": properties}
tool = {"type": "function", "function": {"name": "final_result", "parameters": parameters}}
consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bare", "enable.auto.commit": False,
                     "auto.offset.reset": "earliest"})
producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})
places = asyncio.Semaphore(int(in_flight))

async def answer(client, message):
    request = json.loads(message.value())
    messages = [{"role": "system", "content": "Sort it."}, {"role": "user", "content": request["text"]}]
    async with places:
        done = await client.chat.completions.create(model="fake", messages=messages, tools=[tool])
    answer = json.loads(done.choices[0].message.tool_calls[0].function.arguments)
    (Path(folder) / request["request_id"]).write_text(json.dumps(answer))
    reply = {"request_id": request["request_id"], "answer": answer, "answered_at": datetime.now(UTC).isoformat()}
    producer.produce(replies, json.dumps(reply), request["request_id"])

async def main():
    consumer.subscribe([topic])
    async with AsyncOpenAI(base_url=url, api_key="none") as client:
        while True:
            batch = await asyncio.to_thread(consumer.consume, 200, 0.2)
            await asyncio.gather(*(answer(client, message) for message in batch))
            producer.flush()
            if batch:
                consumer.commit(asynchronous=False)

asyncio.run(main())
"""


class Measured:
    """The replies on the broker, from here on, and the time until each was there."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.producer = broker.producer(**{"linger.ms": 0})
        self.replies = kafka_replies({"bootstrap.servers": broker.bootstrap, "log_level": 0})
        next(self.replies)

    def send(self, topic: str, number: int) -> list[Request]:
        """Put so many requests on the topic."""
        requests = [new_request(f"Question {n}") for n in range(number)]
        for request in requests:
            self.producer.produce(topic, request.model_dump_json().encode(), request.request_id)
        assert self.producer.flush(30) == 0
        return requests

    def seconds(self, requests: Sequence[Request], timeout: float) -> tuple[list[float], float]:
        """Seconds from sending to the answer, of each; and from the first message to the last answer."""
        sent = {request.request_id: request.sent_at for request in requests}
        answered: dict[str, datetime] = {}
        deadline = time.monotonic() + timeout
        while len(answered) < len(sent):
            assert time.monotonic() < deadline, f"{len(sent) - len(answered)} of {len(sent)} have no reply"
            reply = next(self.replies)
            if reply and reply.get("request_id") in sent:
                answered.setdefault(reply["request_id"], datetime.fromisoformat(reply["answered_at"]))
        took = [(at - sent[name]).total_seconds() for name, at in answered.items()]
        return took, (max(answered.values()) - min(sent.values())).total_seconds()

    def idle(self, topic: str, title: str, pause_s: float) -> None:
        """A line for messages that come one by one."""
        took: list[float] = []
        for _ in range(IDLE_MESSAGES):
            took += self.seconds(self.send(topic, 1), 120)[0]
            time.sleep(pause_s)
        _print(title, took, None)

    def burst(self, topic: str, number: int, title: str, flowing: bool = False) -> float:
        """A line for as many at once; the number that were answered a second.

        :param flowing: some come before, so that a run is already at work.
        """
        if flowing:
            self.seconds(self.send(topic, 5), 120)
        took, seconds = self.seconds(self.send(topic, number), 1200)
        _print(title, took, number / seconds)
        return number / seconds


def _print(title: str, took: list[float], speed: float | None) -> None:
    p95 = sorted(took)[max(0, round(len(took) * 0.95) - 1)]
    print(
        f"{title:48} {statistics.median(took):8.2f} {p95:8.2f} " + (f"{speed:10.1f}" if speed else ""),
        flush=True,
    )


def measure(stack: MeasuredStack, broker: Broker, server: ScriptedServer) -> None:
    measured = Measured(broker)
    broker.create_topic(BARE_REQUESTS, 4)
    folder = stack.home / "bare"
    folder.mkdir()
    arguments = [broker.bootstrap, f"{server.url}/v1", BARE_REQUESTS, REPLIES, str(folder), str(IN_FLIGHT)]
    print(f"{'':48} {'median s':>8} {'p95 s':>8} {'a second':>10}")
    for latency in (0.0, 0.3):
        server.script(latency=latency)
        model = f"{1000 * latency:.0f} ms"
        bare = subprocess.Popen([sys.executable, "-c", BARE, *arguments])
        try:
            measured.burst(BARE_REQUESTS, 5, f"{model}: bare consumer, the first")
            measured.idle(BARE_REQUESTS, f"{model}: bare consumer, one by one", 1)
            by_hand = measured.burst(BARE_REQUESTS, BURST, f"{model}: bare consumer, {BURST} at once")
        finally:
            bare.terminate()
            bare.wait(20)
        measured.idle(STREAM_REQUESTS, f"{model}: stream_inference, one by one", IDLE_PAUSE_S)
        cold = measured.burst(STREAM_REQUESTS, BURST, f"{model}: stream_inference, {BURST} at once")
        flowing = measured.burst(STREAM_REQUESTS, BURST, f"{model}: the same, while a run is at work", flowing=True)
        print(f"{model}: {cold / by_hand:.2f} of the bare consumer's throughput; at work {flowing / by_hand:.2f}")
    measured.idle(EVENT_REQUESTS, f"{model}: event_driven_inference, one by one", IDLE_PAUSE_S)
    measured.burst(EVENT_REQUESTS, EVENT_BURST, f"{model}: event_driven_inference, {EVENT_BURST} at once")


def main() -> None:
    with tempfile.TemporaryDirectory() as home, best_broker(Path(home) / "kafka") as broker, running() as server:
        os.environ |= settings(broker, server)
        with measured_stack(Path(home), "stream_inference", "event_driven_inference") as stack:
            measure(stack, broker, server)


if __name__ == "__main__":
    main()
