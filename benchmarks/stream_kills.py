"""Messages to `stream_inference` while everything around it is killed: what became of each.

    python -m benchmarks.stream_kills [--seed 1]

Starts a local stack on a broker of its own (Apache Kafka where Java and Maven are found) and a fake of a model server,
sends good messages and malformed ones of each kind for three minutes, and in this time kills and stops the triggerer,
the scheduler, the worker and Apache Kafka at random moments, which the seed decides. Then it waits until all is quiet,
and counts. It exits with 1 if a good message was lost or became a dead letter, or a malformed one did not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import KafkaException

from benchmarks.stack import MeasuredStack, measured_stack
from include.messages.contract import DEAD_LETTERS, REPLIES, STREAM_REQUESTS, new_request
from local.environment import PROJECT
from local.kafka_broker import broker_connection
from tests.hostile_messages import HOSTILE
from tests.kafka import Broker, best_broker, position
from tests.scripted_model import ScriptedServer, running

DAG_ID = "stream_inference"
MESSAGES = 1000
MALFORMED_OF_EACH = max(1, round(0.05 * MESSAGES / len(HOSTILE)))
SECONDS = 180.0  # of sending and killing
QUIET_S = 300.0  # how long to wait for what is still missing then
LATENCY_S = 0.1
PAUSE_S = (3.0, 9.0)  # between two kills


class Killer:
    """A stack, its broker, and what is killed of them.

    :param model: the fake that answers.
    """

    def __init__(self, stack: MeasuredStack, broker: Broker, model: ScriptedServer) -> None:
        self.stack = stack
        self.broker = broker
        self.model = model
        self.kills: Counter[str] = Counter()
        processes = {part: stack.process(part) for part in ("triggerer", "scheduler")}
        self.parts = {part: (process.cmdline(), process.environ()) for part, process in processes.items()}

    def run(self, seed: int) -> dict[str, int]:
        """Send the messages while parts are killed, wait for the end, and count what became of them."""
        chance = random.Random(seed)  # noqa: S311
        good = {request.request_id: request for request in (new_request(f"Question {n}") for n in range(MESSAGES))}
        values = [request.model_dump_json().encode() for request in good.values()]
        values += [value for value in HOSTILE.values() for _ in range(MALFORMED_OF_EACH)]
        chance.shuffle(values)
        started = time.monotonic()
        sender = threading.Thread(target=self._send, args=(values,))
        sender.start()
        actions = self.actions()
        while time.monotonic() < started + SECONDS:
            time.sleep(chance.uniform(*PAUSE_S))
            name = chance.choice(sorted(actions))
            actions[name]()
            self.kills[name] += 1
        sender.join()
        malformed = len(values) - MESSAGES
        self._wait(lambda: len(self._replied(good)) == MESSAGES and len(self._dead()) >= malformed)
        return self._outcome(good, malformed)

    def actions(self) -> dict[str, Callable[[], None]]:
        """What can happen, by name."""
        actions = {
            f"{part} {how}": (lambda part=part, signal=signal: self.restart(part, signal))
            for part in self.parts
            for how, signal in (("kill -9", "kill"), ("stop", "terminate"))
        }
        actions["worker kill -9"] = self.kill_worker
        if self.broker.process and self.broker.keeps_messages:  # ours, and Apache Kafka
            actions["broker kill -9"] = lambda: self._restart_broker(self.broker.kill)
            actions["broker stop"] = lambda: self._restart_broker(self.broker.stop)
        return actions

    def restart(self, part: str, signal: str) -> None:
        """End a part of Airflow with all its children and start it again, also if it has ended by itself."""
        family = self._family(part)
        for each in family if signal == "kill" else family[:1]:
            getattr(each, signal)()
        _, alive = psutil.wait_procs(family, timeout=20)
        for each in alive:
            each.kill()
        command, environment = self.parts[part]
        self.stack.processes.spawn(part, command, environment, PROJECT)

    def kill_worker(self) -> None:
        """Kill the task's process, if there is one now."""
        port = int(self.model.url.rsplit(":", 1)[1])
        for worker in self._family("scheduler")[1:]:
            if any(each.raddr and each.raddr.port == port for each in _connections(worker)):
                worker.kill()

    def _family(self, part: str) -> list[psutil.Process]:
        """A part's process and its children; none if it has ended by itself, which is counted."""
        try:
            process = self.stack.process(part)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            self.kills[f"{part} ended"] += 1
            return []

    def _restart_broker(self, end: Callable[[], None]) -> None:
        end()
        time.sleep(1)
        self.broker.start()

    def _send(self, values: list[bytes | None]) -> None:
        """Send, evenly, whatever happens to the broker."""
        producer = self.broker.producer(**{"enable.idempotence": True, "delivery.timeout.ms": 300_000})
        for value in values:
            key = json.loads(value)["request_id"] if value and value.startswith(b'{"version":1') else None
            producer.produce(STREAM_REQUESTS, value, key)
            producer.poll(SECONDS / len(values))
        assert producer.flush(300) == 0

    def _replied(self, good: dict[str, Any]) -> Counter[str]:
        replies = [json.loads(message.value()) for message in self.broker.read(REPLIES)]
        return Counter(reply["request_id"] for reply in replies if reply["request_id"] in good)

    def _dead(self) -> dict[Any, Any]:
        return {position(message): message for message in self.broker.read(DEAD_LETTERS)}

    def _wait(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + QUIET_S
        while True:
            try:
                if ready():
                    return
            except (KafkaException, AssertionError) as error:
                print(f"not yet: {error}", file=sys.stderr)
            if time.monotonic() > deadline:
                return
            time.sleep(1)

    def _outcome(self, good: dict[str, Any], malformed: int) -> dict[str, int]:
        replied, dead, answered = self._replied(good), self._dead(), self.model.answered()
        bodies = {request.model_dump_json().encode() for request in good.values()}
        return {
            "sent": len(good),
            "malformed": malformed,
            "answered": len(replied),
            "repeated replies": replied.total() - len(replied),
            "lost": len(good) - len(replied),
            "dead": len(dead),
            "wrongly dead": sum(message.value() in bodies for message in dead.values()),
            "not dead": max(0, malformed - len(dead)),
            "paid twice": sum(answered[request.text] > 1 for request in good.values()),
        }


def _connections(process: psutil.Process) -> list[Any]:
    try:
        return process.net_connections("tcp")
    except psutil.Error:
        return []


def settings(broker: Broker, model: ScriptedServer) -> dict[str, str]:
    """The environment of a stack on this broker and this model."""
    return {
        "AIRFLOW_CONN_KAFKA_DEFAULT": broker_connection(broker.bootstrap),
        "AIRFLOW_CONN_PYDANTICAI_DEFAULT": model.connection(),
        # A triggerer takes over from one that was killed after this many seconds, not after 30.
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
        # And a scheduler finds the tasks of one that was killed after this many.
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream_kills", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the random moments (default: %(default)s)")
    seed = parser.parse_args().seed
    with tempfile.TemporaryDirectory() as home, best_broker(Path(home) / "kafka") as broker, running() as model:
        model.script(latency=LATENCY_S)
        os.environ |= settings(broker, model)
        with measured_stack(Path(home), DAG_ID) as stack:
            killer = Killer(stack, broker, model)
            outcome = killer.run(seed)
        print(f"\n{broker.name}, seed {seed}")
        for name, number in [*outcome.items(), *sorted(killer.kills.items())]:
            print(f"  {name:18} {number:6}")
    sys.exit(1 if outcome["lost"] or outcome["wrongly dead"] or outcome["not dead"] else 0)


if __name__ == "__main__":
    main()
