"""The Docker-free stack: a whole Airflow, the embedded model server and Kafka broker, and fakes of two services."""

from __future__ import annotations

import argparse
import sqlite3
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import yaml

from local.airflow_api import AirflowAPI
from local.arguments import whole_number
from local.environment import (
    DEFAULT_HOME,
    PROJECT,
    airflow_environment,
    user_environment,
    uses_embedded_model,
)
from local.kafka_broker import broker_command, create_topics
from local.policy import install_policy
from local.processes import ProcessGroup, StackError, answers, free_ports, interrupt_on_signals, require_free_port
from local.sqs_server import create_queues, queue_url, sqs_command

DEFAULT_PORT = 8080
START_TIMEOUT_S = 600.0  # a part that ends is noticed at once; a busy machine needs minutes
ANSWER_TIMEOUT_S = 60.0

# What tasks ask. The API server builds this part at the first request, which takes Airflow 3.3 half a minute on a busy
# machine, in which it answers no other.
FIRST_PATH = "/execution/health"
# Airflow expands % and $ in a setting; ? ends the path in a database's URL, and : a path in PYTHONPATH.
UNUSABLE_IN_SETTINGS = frozenset("%$?:")

TINY_MODEL_NOTICE = """\
The language model is SmolLM2-135M, running on this machine: the components are real; expect weak answers.
For a real model put OPENAI_API_KEY=... into .env (a current, cheap model is used; make demo PAID=1), or the connection
AIRFLOW_CONN_PYDANTICAI_DEFAULT for Ollama or another provider; .env.example shows how."""
OWN_MODEL_NOTICE = "The language model is the one of your settings (.env or the shell): its calls may cost money."

MODEL_PACKAGES = ("xllamacpp", "wordllama")
MODEL_CONNECTIONS = ("AIRFLOW_CONN_PYDANTICAI_DEFAULT", "AIRFLOW_CONN_EMBEDDINGS_DEFAULT")

Say = Callable[[str], None]


class Stack:
    """One local stack in one folder.

    :param home: where its database, logs and data are.
    :param api_port: port of the UI and the REST API. All other ports are any free ones.
    """

    def __init__(self, home: Path = DEFAULT_HOME, api_port: int = DEFAULT_PORT) -> None:
        self.home = home.resolve()
        self.processes = ProcessGroup(self.home)
        self.api = AirflowAPI(f"http://127.0.0.1:{api_port}")
        self._api_port = api_port
        self._port_file = self.home / "port"
        self._broker_file = self.home / "broker"
        self._queue_file = self.home / "queue"

    @property
    def broker(self) -> str:
        """Host and port of the embedded Kafka broker."""
        return self._broker_file.read_text()

    @property
    def queue(self) -> str:
        """URL of the queue of requests on the embedded fake of Amazon SQS."""
        return self._queue_file.read_text()

    def attach(self) -> bool:
        """Use the stack that already runs in this folder, if there is one, on its own port.

        :raises StackError: it runs, but its API does not answer in time.
        """
        if not self.processes.attach():
            return False
        self.api = AirflowAPI(f"http://127.0.0.1:{self._port_file.read_text()}")
        self._wait_for("api-server", f"{self.api.url}{FIRST_PATH}", time.monotonic() + ANSWER_TIMEOUT_S)
        return True

    def start(self, say: Say) -> None:
        """Start everything and return when all parts answer.

        :raises StackError: the folder has a name that Airflow's settings cannot hold, a port is busy, or a part ends or
            does not answer in time.
        """
        if unusable := sorted(UNUSABLE_IN_SETTINGS & {*str(self.home), *str(PROJECT)}):
            raise StackError(
                f"Airflow's settings cannot hold the character {unusable[0]!r} in the path {self.home}: "
                "move the project to a folder without it."
            )
        model_server = has_model_server(user_environment())
        deadline = time.monotonic() + START_TIMEOUT_S
        require_free_port(self._api_port)
        self.home.mkdir(parents=True, exist_ok=True)
        self.home.chmod(0o700)  # it holds prompts, answers, and the key that signs tokens
        self._port_file.write_text(str(self._api_port))
        model_port, openai_port, broker_port, sqs_port, worker_logs, trigger_logs = free_ports(6)
        broker, queue = f"127.0.0.1:{broker_port}", queue_url(sqs_port)
        self._broker_file.write_text(broker)
        self._queue_file.write_text(queue)
        model_url, openai_url = (f"http://127.0.0.1:{port}" for port in (model_port, openai_port))
        environment = airflow_environment(
            self.home, self._api_port, f"{model_url}/v1", f"{openai_url}/v1", broker, queue, (worker_logs, trigger_logs)
        )
        python = [sys.executable, "-m"]
        say(TINY_MODEL_NOTICE if uses_embedded_model(user_environment()) else OWN_MODEL_NOTICE)
        try:
            if model_server:
                command = [*python, "local.model_server", "--port", str(model_port)]
                self.processes.spawn("model-server", command, environment, PROJECT)
            emulator = [*python, "local.openai_emulator", "--port", str(openai_port)]
            emulator += ["--folder", str(self.home / "openai_emulator"), "--upstream", f"{model_url}/v1"]
            self.processes.spawn("openai-emulator", emulator, environment, PROJECT)
            self.processes.spawn("kafka-broker", broker_command(self.home, broker_port), environment, PROJECT)
            self.processes.spawn("sqs-server", sqs_command(sqs_port), environment, PROJECT)
            install_policy(self.home / "airflow")
            self._migrate(environment, say)
            self.processes.wait_for("kafka-broker", lambda: create_topics(broker), deadline)
            self.processes.wait_for("sqs-server", lambda: create_queues(queue), deadline)
            for name in ("api-server", "scheduler", "dag-processor", "triggerer"):
                self.processes.spawn(name, [*python, "local.preloaded_airflow", name], environment, PROJECT)
            if model_server:
                self._wait_for("model-server", f"{model_url}/health", deadline)
            self._wait_for("openai-emulator", f"{openai_url}/health", deadline)
            self._wait_for("api-server", f"{self.api.url}{FIRST_PATH}", deadline)
            say("the API server is ready" if not model_server else "model server and API server are ready")
            self.api.log_in()
            self._create_pools()
            for part in ("scheduler", "dag_processor", "triggerer"):
                name = part.replace("_", "-")
                self.processes.wait_for(name, lambda: self.api.health()[part] == "healthy", deadline)  # noqa: B023
            say("scheduler, dag-processor and triggerer are ready")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End what `start` started, or `attach` found."""
        self.processes.stop()

    def _migrate(self, environment: dict[str, str], say: Say) -> None:
        """Create the database or migrate it to this Airflow's version, unless that was done already."""
        database = self.home / "airflow" / "airflow.db"
        done = self.home / "airflow" / f"migrated-to-{version('apache-airflow')}"
        if done.exists() and database.exists():
            return
        say("creating Airflow's database")
        if self.processes.run("db-migrate", [sys.executable, "-m", "airflow", "db", "migrate"], environment, PROJECT):
            log = self.processes.log_file("db-migrate")
            raise StackError(f"Airflow's database could not be created. See {log}")
        with sqlite3.connect(database) as connection:  # readers and one writer at the same time
            connection.execute("PRAGMA journal_mode=WAL")
        done.touch()

    def _create_pools(self) -> None:
        settings = yaml.safe_load((PROJECT / "airflow_settings.yaml").read_text(encoding="utf-8"))
        for pool in settings["airflow"]["pools"]:
            self.api.set_pool(pool["pool_name"], pool["pool_slot"], pool["pool_description"])

    def _wait_for(self, name: str, url: str, deadline: float) -> None:
        self.processes.wait_for(name, lambda: answers(url), deadline)


def has_model_server(user: dict[str, str]) -> bool:
    """Whether the embedded models can run here.

    :raises StackError: they cannot, and the user's settings do not name others.
    """
    missing = [package for package in MODEL_PACKAGES if not find_spec(package)]
    unset = [name for name in MODEL_CONNECTIONS if not user.get(name)]
    if missing and unset and not user.get("OPENAI_API_KEY"):
        raise StackError(
            f"The embedded models do not run on this machine, as {' and '.join(missing)} could not be installed. "
            f"Put models of your own into .env: OPENAI_API_KEY, or {' and '.join(unset)}."
        )
    return not missing


def stack_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which stack is meant."""
    parser.add_argument(
        "--port",
        type=whole_number("PORT", 1, 65535),
        default=DEFAULT_PORT,
        help="port of the UI (default: %(default)s)",
    )
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME, help="folder of its data (default: .local)")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.stack", description=__doc__)
    parser.add_argument("action", choices=["start", "stop"])
    stack_arguments(parser)
    arguments = parser.parse_args()
    interrupt_on_signals()
    stack = Stack(arguments.home, arguments.port)
    try:
        if arguments.action == "stop":
            running = stack.processes.attach()
            stack.stop()
            print("Stopped." if running else "Nothing was running.")
        elif stack.attach():
            print(f"Already running: {stack.api.url}")
        else:
            stack.start(say=print)
            print(f"Airflow's UI: {stack.api.url}")
    except StackError as error:
        sys.exit(f"The local stack cannot start: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted.")


if __name__ == "__main__":
    main()
