"""The log of a triggerer whose Kafka does not answer, as when a project starts that has no use for Kafka."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import yaml

from include.messages.kafka import doorbell
from include.messages.kafka.doorbell import KafkaDoorbellTrigger
from local.kafka_broker import broker_connection
from tests.conftest import PROJECT
from tests.stack import wait_until

TRIES = 30

TRIGGERS = """
import asyncio

from airflow.providers.apache.kafka.triggers.await_message import AwaitMessageTrigger
from include.messages.kafka.doorbell import KafkaDoorbellTrigger

async def listen(trigger):
    async for event in trigger.run():
        print("an event", event, flush=True)

async def main():
    print("THE LOG BEGINS", flush=True)
    event = AwaitMessageTrigger(
        kafka_config_id="kafka_events", topics=["any"], apply_function="json.loads", poll_timeout=0.2
    )
    bell = KafkaDoorbellTrigger(topic="any", group="g", kafka_config_id="kafka_bell")
    await asyncio.gather(listen(event), listen(bell))

asyncio.run(main())
"""


class NoBroker:
    """A fake of a broker that is down: it takes every connection, counts it, and closes it."""

    def __init__(self) -> None:
        self.tries = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                self._socket.accept()[0].close()
            except OSError:
                return
            self.tries += 1

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def brokers() -> Iterator[dict[str, NoBroker]]:
    found = {name: NoBroker() for name in ("KAFKA_EVENTS", "KAFKA_BELL")}
    yield found
    for broker in found.values():
        broker.close()


def of_the_settings() -> dict[str, object]:
    connections = yaml.safe_load((PROJECT / "airflow_settings.yaml").read_text())["airflow"]["connections"]
    (kafka,) = (each for each in connections if each["conn_id"] == "kafka_default")
    return json.loads(kafka["conn_extra"])


def of_the_env_example() -> dict[str, object]:
    text = (PROJECT / ".env.example").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("#AIRFLOW_CONN_KAFKA_DEFAULT="))
    extra = json.loads(line.partition("=")[2])["extra"]
    return {key: value for key, value in extra.items() if not key.startswith(("sasl.", "security."))}


def of_the_local_stack() -> dict[str, object]:
    return json.loads(broker_connection("127.0.0.1:1"))["extra"]


@pytest.mark.skipif(not (PROJECT / "airflow_settings.yaml").exists(), reason="inside the image")
def test_every_connection_to_kafka_that_the_project_brings_has_the_settings_of_a_quiet_log():
    for extra in (of_the_settings(), of_the_env_example(), of_the_local_stack()):
        assert (extra["metadata.recovery.strategy"], extra["log_level"]) == ("none", 0)


@pytest.mark.skipif(not (PROJECT / "airflow_settings.yaml").exists(), reason="inside the image")
def test_thirty_failed_tries_of_a_connection_are_a_line_of_each_trigger(brokers, tmp_path):
    quick = {"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 50}  # librdkafka's own: 10 seconds at the most
    environment = {**os.environ}
    for name, broker in brokers.items():
        extra = {**of_the_settings(), **quick, "bootstrap.servers": broker.address}
        environment[f"AIRFLOW_CONN_{name}"] = json.dumps({"conn_type": "kafka", "extra": extra})
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-W", "ignore", "-c", TRIGGERS]
        triggerer = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: all(broker.tries > TRIES for broker in brokers.values()))
        finally:
            triggerer.kill()
            triggerer.wait()

    lines = (tmp_path / "log").read_text().split("THE LOG BEGINS\n")[1].splitlines()
    assert sum("Exception received" in line for line in lines) <= 2, lines
    assert sum("The doorbell of any waits" in line for line in lines) <= 1, lines
    assert sum(broker.address in line for line in lines for broker in brokers.values()) <= 3, lines


def test_the_doorbell_says_a_trouble_that_changes_all_the_time_once_a_minute(monkeypatch):
    now = [0.0]
    troubles = iter(range(1000))

    async def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] >= 600:
            raise asyncio.CancelledError

    def broken(self: KafkaDoorbellTrigger) -> None:
        raise RuntimeError(f"trouble {next(troubles)}")

    monkeypatch.setattr(doorbell, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(doorbell, "asyncio", SimpleNamespace(sleep=sleep, get_running_loop=asyncio.get_running_loop))
    monkeypatch.setattr(KafkaDoorbellTrigger, "_rings", broken)

    log = Mock()
    monkeypatch.setattr(KafkaDoorbellTrigger, "log", log)

    async def listen() -> None:
        async for _ in KafkaDoorbellTrigger(topic="any", group="g", kafka_config_id="k").run():
            raise AssertionError("it rang")

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(listen())
    assert log.error.call_count == 10
