"""Messages to `stream_inference` while everything around it is killed: what became of each.

    python -m benchmarks.stream_kills [--messages 1000] [--seeds 1]

Starts a local stack on a broker of its own (Apache Kafka where Java and Maven are found) and a fake of a model server,
sends good messages and malformed ones of each kind, and meanwhile kills and stops the triggerer, the scheduler, the
worker and the broker at random moments, the same for the same seed. Then it waits until all is quiet, and counts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import KafkaException

from include.messages.contract import DEAD_LETTERS, REPLIES, STREAM_REQUESTS, new_request
from local.environment import PROJECT
from local.kafka_broker import broker_connection
from local.processes import free_ports
from local.stack import Stack
from tests.hostile_messages import HOSTILE
from tests.kafka import Broker, best_broker, position
from tests.scripted_model import ScriptedServer, running

DAG_ID = "stream_inference"
LATENCY_S = 0.1
PAUSE_S = (3.0, 9.0)  # between two kills


@dataclass
class Outcome:
    """What became of the messages of a round."""

    sent: int
    malformed: int
    answered: int
    repeated_replies: int
    lost: int
    dead: int
    wrongly_dead: int
    not_dead: int
    paid_twice: int
    kills: Counter[str]
    seconds: float

    @property
    def is_right(self) -> bool:
        return not (self.lost or self.wrongly_dead or self.not_dead)


class Killer:
    """A stack, its broker, and what is killed of them.

    :param model: the fake that answers.
    """

    def __init__(self, stack: Stack, broker: Broker, model: ScriptedServer) -> None:
        self.stack = stack
        self.broker = broker
        self.model = model
        self.children: list[subprocess.Popen[bytes]] = []
        self.kills: Counter[str] = Counter()

    def run(self, messages: int, malformed_of_each: int, seed: int, kill_s: float, timeout: float) -> Outcome:
        """Send the messages over `kill_s` seconds while parts are killed, and wait for the end.

        :raises TimeoutError: it did not come.
        """
        chance = random.Random(seed)  # noqa: S311
        self.kills = Counter()
        good = {
            request.request_id: request for request in (new_request(f"Question {seed}-{n}") for n in range(messages))
        }
        values = [request.model_dump_json().encode() for request in good.values()]
        values += [value for value in HOSTILE.values() for _ in range(malformed_of_each)]
        chance.shuffle(values)
        before = len(self._dead())
        started = time.monotonic()
        sender = threading.Thread(target=self._send, args=(values, kill_s))
        sender.start()
        actions = self.actions()
        while time.monotonic() < started + kill_s:
            time.sleep(chance.uniform(*PAUSE_S))
            name = chance.choice(sorted(actions))
            actions[name]()
            self.kills[name] += 1
        sender.join()
        malformed = len(values) - messages
        self._wait(lambda: len(self._replied(good)) == messages and len(self._dead()) - before >= malformed, timeout)
        return self._outcome(good, malformed, before, time.monotonic() - started)

    def actions(self) -> dict[str, Callable[[], None]]:
        """What can happen, by name."""
        actions = {
            f"{part} {how}": (lambda part=part, signal=signal: self.restart(part, signal))
            for part in ("triggerer", "scheduler")
            for how, signal in (("kill -9", "kill"), ("stop", "terminate"))
        }
        actions["worker kill -9"] = self.kill_worker
        if self.broker.process is None:
            return actions  # it is somebody else's
        if self.broker.keeps_messages:
            actions["broker kill -9"] = lambda: self._restart_broker(self.broker.kill)
            actions["broker stop"] = lambda: self._restart_broker(self.broker.stop)
        else:
            actions["broker hangs"] = self._pause_broker
        return actions

    def restart(self, part: str, signal: str) -> None:
        """End a part of Airflow with all its children and start it again."""
        (process,) = self._top(part)
        command, environment = process.cmdline(), process.environ()
        family = [process, *process.children(recursive=True)]
        for each in family if signal == "kill" else [process]:
            getattr(each, signal)()
        _, alive = psutil.wait_procs(family, timeout=20)
        for each in alive:
            each.kill()
        with (self.stack.home / "logs" / f"{part}-again.log").open("ab") as log:
            self.children.append(subprocess.Popen(command, env=environment, cwd=PROJECT, stdout=log, stderr=log))

    def kill_worker(self) -> None:
        """Kill the task's process, if there is one now."""
        for scheduler in self._top("scheduler"):
            for worker in scheduler.children(recursive=True):
                if any(each.raddr and each.raddr.port == self._model_port() for each in _connections(worker)):
                    worker.kill()

    def end(self) -> None:
        """End what was started again."""
        for child in self.children:
            if child.poll() is None:
                for process in [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]:
                    process.terminate()
                child.wait(30)

    def _restart_broker(self, end: Callable[[], None]) -> None:
        end()
        time.sleep(1)
        self.broker.start()

    def _pause_broker(self) -> None:
        assert self.broker.process
        self.broker.process.suspend()
        time.sleep(4)
        self.broker.process.resume()

    def _send(self, values: list[bytes | None], seconds: float) -> None:
        """Send, evenly, whatever the broker goes through."""
        producer = self.broker.producer(**{"enable.idempotence": True, "delivery.timeout.ms": 300_000})
        for value in values:
            key = json.loads(value)["request_id"] if value and value.startswith(b'{"version":1') else None
            producer.produce(STREAM_REQUESTS, value, key)
            producer.poll(seconds / len(values))
        assert producer.flush(300) == 0

    def _replied(self, good: dict[str, Any]) -> Counter[str]:
        replies = [json.loads(message.value()) for message in self.broker.read(REPLIES)]
        return Counter(reply["request_id"] for reply in replies if reply["request_id"] in good)

    def _dead(self) -> dict[Any, Any]:
        return {position(message): message for message in self.broker.read(DEAD_LETTERS)}

    def _wait(self, ready: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                if ready():
                    return
            except (KafkaException, AssertionError) as error:
                print(f"not yet: {error}", file=sys.stderr)
            if time.monotonic() > deadline:
                return
            time.sleep(1)

    def _outcome(self, good: dict[str, Any], malformed: int, before: int, seconds: float) -> Outcome:
        replied = self._replied(good)
        dead = self._dead()
        bodies = {request.model_dump_json().encode() for request in good.values()}
        wrongly = sum(message.value() in bodies for message in dead.values())
        answered = self.model.answered()
        return Outcome(
            sent=len(good),
            malformed=malformed,
            answered=len(replied),
            repeated_replies=replied.total() - len(replied),
            lost=len(good) - len(replied),
            dead=len(dead) - before,
            wrongly_dead=wrongly,
            not_dead=max(0, malformed - (len(dead) - before)),
            paid_twice=sum(answered[request.text] > 1 for request in good.values()),
            kills=self.kills,
            seconds=seconds,
        )

    def _top(self, part: str) -> list[psutil.Process]:
        """The process of this part that is no child of another of it."""
        home = str(self.stack.home / "airflow")
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("AIRFLOW_HOME") == home and process.cmdline()[-1:] == [part]:
                    found.append(process)
            except psutil.Error:
                continue
        return [each for each in found if each.ppid() not in {other.pid for other in found}]

    def _model_port(self) -> int:
        return int(self.model.url.rsplit(":", 1)[1])


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
    parser.add_argument("--messages", type=int, default=1000, help="good ones per round (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="a round for each (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=180, help="of sending and killing (default: %(default)s)")
    arguments = parser.parse_args()
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as home, best_broker(Path(home) / "kafka") as broker, running() as model:
        model.script(latency=LATENCY_S)
        os.environ |= settings(broker, model)
        stack = Stack(Path(home), port)
        killer = Killer(stack, broker, model)
        try:
            stack.start(say=print)
            while DAG_ID not in stack.api.dags():
                time.sleep(0.5)
            right = True
            for seed in arguments.seeds:
                each = max(1, round(arguments.messages * 0.05 / len(HOSTILE)))
                outcome = killer.run(arguments.messages, each, seed, arguments.seconds, timeout=300)
                _print(broker.name, seed, outcome)
                right = right and outcome.is_right
        finally:
            killer.end()
            stack.stop()
    sys.exit(0 if right else 1)


def _print(broker: str, seed: int, outcome: Outcome) -> None:
    print(f"\n{broker}, seed {seed}: {outcome.seconds:.0f} s")
    for name, value in vars(outcome).items():
        if name not in ("kills", "seconds"):
            print(f"  {name.replace('_', ' '):18} {value:6}")
    for name, number in sorted(outcome.kills.items()):
        print(f"  {name:18} {number:6}")


if __name__ == "__main__":
    main()
