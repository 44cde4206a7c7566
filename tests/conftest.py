"""One Airflow database for the whole session, and DAG runs in this process against a scripted LLM server."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

PROJECT = Path(__file__).resolve().parent.parent

# `astro dev pytest` and `astro deploy` run inside the image. It has what requirements.txt lists, but not what the other
# tests need (local/requirements.in); CI runs those.
RUN_IN_THE_IMAGE = {"test_dag_contract.py", "test_own_dags.py"}
try:
    import hypothesis
    import llmock  # noqa: F401

    # No test watches the clock, and each runs the same examples everywhere.
    hypothesis.settings.register_profile("project", deadline=None, database=None, derandomize=True)
    hypothesis.settings.load_profile("project")
except ModuleNotFoundError:
    collect_ignore = [
        str(path) for path in Path(__file__).parent.rglob("test_*.py") if path.name not in RUN_IN_THE_IMAGE
    ]

# Airflow reads its configuration when it is first imported: this must come before any such import.
_home = tempfile.TemporaryDirectory(prefix="genai-tests-")
# And tests call `make` as a person would, not from within another `make`.
for name in [n for n in os.environ if n.startswith(("AIRFLOW", "OPENAI_", "GENAI_", "MAKE", "MFLAGS", "STACK"))]:
    del os.environ[name]
os.environ |= {
    "AIRFLOW_HOME": _home.name,
    "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
    "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    "PYTHONPATH": str(PROJECT),
}

# Airflow's database is SQLite, or with DATABASE=postgres a server's that the first process starts for all.
_server = contextlib.ExitStack()
atexit.register(_server.close)  # after Airflow, which is imported later, has closed its connections
DATABASE = os.environ.get("DATABASE", "sqlite")
NOT_ON_POSTGRES = ""
if DATABASE == "postgres":
    from tests.postgres import NoPostgres, new_database, postgres

    try:
        if "POSTGRES_OF_THE_TESTS" not in os.environ:
            os.environ["POSTGRES_OF_THE_TESTS"] = _server.enter_context(postgres())
        os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = new_database(os.environ["POSTGRES_OF_THE_TESTS"])
    except NoPostgres as reason:
        NOT_ON_POSTGRES = f"NOT TESTED ON POSTGRESQL: {reason}"
elif DATABASE != "sqlite":
    raise pytest.UsageError(f"DATABASE={DATABASE} is unknown. Use sqlite or postgres")


KEY = "sk-the-secret-key-of-the-tests"


# `make test` runs files in parallel, but these one after the other: a small machine can run one Airflow at a time.
# They start first, as together they take the longest.
REAL_AIRFLOW = ("end_to_end", "scheduling", "event_driven", "fine_tuning_restarts", "human_review")
# And these, which share their brokers.
KAFKA = ("stream_inference", "kafka_doorbell")
# Then these, which take minutes, so that none is left alone at the end.
LONG = {f"test_{name}.py" for name in (*KAFKA, "copied_projects", "using_the_template")}
GROUPS = {f"test_{name}.py": group for group in (REAL_AIRFLOW, KAFKA) for name in group}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run the files of a group in one process."""
    from xdist.scheduler import LoadFileScheduling

    class GroupScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return str(GROUPS.get(Path(file).name, file))

    return GroupScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    fleet = [] if os.environ.get("SCALE") else [item for item in items if item.get_closest_marker("fleet")]
    config.hook.pytest_deselected(items=fleet)
    items[:] = [item for item in items if item not in fleet]
    if NOT_ON_POSTGRES:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=NOT_ON_POSTGRES))
    items.sort(key=lambda item: (GROUPS.get(item.path.name) != REAL_AIRFLOW, item.path.name not in LONG))


def pytest_configure() -> None:
    """Let a `kill` stop what the tests have started, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("check_own_dags", "also test the DAGs that the template did not bring", type="bool", default=False)


def template_dags() -> dict[str, Path]:
    """Return the file of each DAG of the template, by DAG id. It may have been deleted."""
    lines = (PROJECT / "dags" / "template_dags.txt").read_text(encoding="utf-8").splitlines()
    return {Path(line).stem: PROJECT / line for line in lines if line.startswith("dags/")}


def dag_files(folder: str = "") -> list[Path]:
    """Return the template's DAG files that exist, to parametrize tests with."""
    return [
        path for path in template_dags().values() if path.exists() and path.is_relative_to(PROJECT / "dags" / folder)
    ]


def own_dag_files() -> list[Path]:
    """Return the other DAG files: those that a user of the template has added."""
    return sorted(set((PROJECT / "dags").rglob("*.py")) - set(dag_files()))


def dag_file(dag_id: str) -> Path:
    """Return the file of a DAG of the template; skip the test if the DAG was deleted."""
    path = template_dags()[dag_id]
    if not path.exists():
        pytest.skip(f"{path.relative_to(PROJECT)} was deleted")
    return path


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs_dags"):
        for dag_id in marker.args:
            dag_file(dag_id)


def dag_bag_module() -> Any:
    """Return the module in which this Airflow has `DagBag` and `sync_bag_to_db`."""
    try:
        from airflow.dag_processing import dagbag
    except ImportError:  # Airflow 3.1
        from airflow.models import dagbag
    return dagbag


def parse(path: Path) -> Any:
    """Return a `DagBag` of the DAG file at `path`, which must be imported without an error."""
    bag = dag_bag_module().DagBag(str(path))
    assert bag.import_errors == {}
    return bag


@pytest.fixture(scope="session")
def airflow_db() -> None:
    """A migrated Airflow database, with the project's DAG bundle known to it."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.sdk.execution_time import supervisor
    from airflow.utils.db import initdb

    initdb()
    DagBundlesManager().sync_bundles_to_db()
    # `dag.test()` builds the whole execution API again for each task, which takes a second.
    supervisor.in_process_api_server = functools.cache(supervisor.in_process_api_server)
    # And on Airflow 3.3 it parses and writes all DAGs of the folder again for each run, which takes another second.
    dag_bag_module().BundleDagBag = lambda **_: dag_bag_module().DagBag(os.devnull)
    check_each_schema_once()


def check_each_schema_once() -> None:
    """Check a schema once: Airflow does so at each use of a param's value, a fifth of the time of a run here."""
    from jsonschema import Draft202012Validator

    check, passed = Draft202012Validator.check_schema, set()

    def check_once(schema: Any, *options: Any, **more: Any) -> None:
        text = json.dumps(schema, sort_keys=True, default=repr)
        if text not in passed:
            check(schema, *options, **more)
            passed.add(text)

    Draft202012Validator.check_schema = staticmethod(check_once)


@dataclass
class DagRunResult:
    """What a run left behind in Airflow's database."""

    run: Any

    @property
    def state(self) -> str:
        return str(self.run.state)

    def states(self) -> dict[str, str]:
        """State by task id; for mapped tasks by `task_id[map index]`."""
        return {
            ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]": str(ti.state)
            for ti in self.run.get_task_instances()
        }

    def task_instance(self, task_id: str, map_index: int = -1) -> Any:
        return self.run.get_task_instance(task_id, map_index=map_index)

    def xcom(self, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """Return an XCom of the database, decoded; None if there is none."""
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session
        from sqlalchemy import select

        with create_session() as session:
            row = session.scalar(
                select(XComModel).where(
                    XComModel.dag_id == self.run.dag_id,
                    XComModel.run_id == self.run.run_id,
                    XComModel.task_id == task_id,
                    XComModel.key == key,
                    XComModel.map_index == map_index,
                )
            )
        return row and XComModel.deserialize_value(row)


@pytest.fixture
def load_dag(airflow_db: None) -> Callable[[str], Any]:
    """Parse the file of a DAG of the template again and return its DAG."""

    def load(dag_id: str) -> Any:
        return parse(dag_file(dag_id)).dags[dag_id]

    return load


@pytest.fixture
def run_any_dag(airflow_db: None) -> Callable[..., DagRunResult]:
    """Run a DAG object in this process, with this `conf`; a task that retries does so at once.

    A call with the same `logical_date` and `run_after` clears and repeats the same run.
    """

    def run(dag: Any, conf: dict[str, Any] | None = None, **test_options: Any) -> DagRunResult:
        bag = dag_bag_module().DagBag(os.devnull)
        bag.dags[dag.dag_id] = dag
        dag_bag_module().sync_bag_to_db(bag, "dags-folder", None)
        for task in dag.tasks:
            if task.is_mapped:
                task.partial_kwargs |= {"retry_delay": timedelta(0), "retry_exponential_backoff": False}
            else:
                task.retry_delay, task.retry_exponential_backoff = timedelta(0), False
        return DagRunResult(dag.test(run_conf=conf, **test_options))

    return run


@pytest.fixture
def run_dag(load_dag: Callable[[str], Any], run_any_dag: Callable[..., DagRunResult]) -> Callable[..., DagRunResult]:
    """Run the template's DAG of this id, as `run_any_dag` does."""

    def run(dag_id: str, conf: dict[str, Any] | None = None, **test_options: Any) -> DagRunResult:
        return run_any_dag(load_dag(dag_id), conf, **test_options)

    return run


def model_connection(base_url: str, model: str = "openai-chat:gpt-6-luna", key: str = KEY) -> str:
    """Return a connection to a model as JSON, for AIRFLOW_CONN_*."""
    return json.dumps({"conn_type": "pydanticai", "host": base_url, "password": key, "extra": {"model": model}})


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty place for the artifacts of DAGs, with the methods of a Path, and an empty vector store.

    It is a folder, unless the test is run `on_storage(...)` of other kinds.
    """
    from tests.storages import new_storage

    store = {"conn_type": "lancedb", "host": str(tmp_path / "lancedb")}
    monkeypatch.setenv("AIRFLOW_CONN_VECTOR_STORE_DEFAULT", json.dumps(store))
    url, path = new_storage(getattr(request, "param", "disk"), request, tmp_path / "artifacts", monkeypatch)
    monkeypatch.setenv("GENAI_STORAGE", url)
    return path


@pytest.fixture
def llm(llmock: Any, storage: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A scripted LLM and embeddings server (a fake, over real HTTP), behind the project's connections."""
    base_url = llmock.env()["OPENAI_BASE_URL"]
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", model_connection(base_url))
    monkeypatch.setenv("AIRFLOW_CONN_EMBEDDINGS_DEFAULT", model_connection(base_url, "openai:text-embedding-3-small"))
    return llmock


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Return all that this test logged from INFO up: Airflow's own lines go to stdout, the other loggers' to caplog."""

    def read() -> str:
        captured = capfd.readouterr()
        return "\n".join([captured.out, captured.err, caplog.text])

    caplog.set_level("INFO")
    return read


def chat_requests(llm: Any) -> list[dict[str, Any]]:
    """Return the bodies of the chat requests that the scripted server got, in order."""
    return [request.body for request in llm.requests if request.path.endswith("/chat/completions")]


def embedding_requests(llm: Any) -> list[dict[str, Any]]:
    """Return the bodies of the embedding requests that the scripted server got, in order."""
    return [request.body for request in llm.requests if request.path.endswith("/embeddings")]


@pytest.fixture(scope="session", params=["embedded", "apache"])
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Kafka broker with the project's topics: the embedded one, and Apache Kafka where it is available."""
    from tests.kafka import NoKafka, apache_kafka, embedded_broker

    run = {"embedded": embedded_broker, "apache": apache_kafka}[request.param]
    try:
        with run(tmp_path_factory.mktemp(request.param)) as running:
            yield running
    except NoKafka as reason:
        pytest.skip(f"NOT TESTED ON APACHE KAFKA: {reason}")


@pytest.fixture
def kafka(broker: Any, storage: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The broker, behind the connection `kafka_default`, with an empty storage."""
    from local.kafka_broker import broker_connection

    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", broker_connection(broker.bootstrap))
    return broker


@pytest.fixture(scope="session")
def model_server() -> Iterator[Any]:
    """The process of the fixture `model`."""
    from tests.scripted_model import running

    with running() as server:
        yield server


@pytest.fixture
def model(model_server: Any, storage: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fast fake of a language model, with faults on request, behind the connection `pydanticai_default`."""
    model_server.script()
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", model_server.connection())
    return model_server


@pytest.fixture(scope="session")
def aws_port() -> Iterator[int]:
    """The port of moto's server (a fake of Amazon's S3 and SQS) on 127.0.0.1.

    There is one for all tests, as the file system of a bucket, once opened, lasts as long as the process.
    """
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture(scope="session")
def sqs_server(aws_port: int) -> str:
    """The URL of a queue that does not exist yet, on a fake of Amazon SQS."""
    from local.sqs_server import queue_url

    return queue_url(aws_port)


@pytest.fixture
def s3(aws_port: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of a fake of Amazon S3, which the environment also points to."""
    from tests.storages import s3_client

    return s3_client(f"http://127.0.0.1:{aws_port}", monkeypatch)


@pytest.fixture
def sqs(sqs_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a new queue, with those of replies and dead letters beside it, behind the connection `aws_default`."""
    from local.sqs_server import create_queues, sqs_connection

    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", sqs_connection(sqs_server))
    url = f"{sqs_server}-{uuid4().hex[:12]}"
    assert create_queues(url)
    return url


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running stack with the template's DAGs only, and with `asset_or_time` at every minute as `asset_or_minute`."""
    from local.processes import free_ports
    from tests.stack import RunningAirflow, local, now, processes_of, stop, wait_until

    home = tmp_path_factory.mktemp("airflow")
    dags = tmp_path_factory.mktemp("dags")
    for path in dag_files():
        shutil.copy(path, dags)
    if (dags / "asset_or_time.py").exists():
        code = (dags / "asset_or_time.py").read_text()
        every_minute = code.replace('"0 6 * * *"', '"* * * * *"').replace("asset_or_time()", "asset_or_minute()")
        assert every_minute.count("asset_or_minute") == 2
        (dags / "asset_or_minute.py").write_text(every_minute)
    bundle = "airflow.dag_processing.bundles.local.LocalDagBundle"
    bundles = [{"name": "dags-folder", "classpath": bundle, "kwargs": {"path": str(dags)}}]
    settings = {
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
        # A triggerer takes over from a killed one after this many seconds, instead of 30.
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    }
    if DATABASE == "postgres":
        settings["LOCAL_DATABASE"] = new_database(os.environ["POSTGRES_OF_THE_TESTS"])
    (port,) = free_ports(1)
    started = now()
    try:
        start = local("stack", "start", home=home, port=port, **settings)
        assert start.returncode == 0, start.stdout + start.stderr
        assert "SmolLM2-135M" in start.stdout
        running = RunningAirflow(f"http://127.0.0.1:{port}", home, started)
        running.log_in()
        wait_until(lambda: {path.stem for path in dags.glob("*.py")} <= running.dags().keys(), timeout=300)
        yield running
    finally:
        stop(home)
    assert processes_of(home) == []
