"""The environment in which the local stack's Airflow runs: settings, and the embedded parts as connections."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dotenv import dotenv_values

from local.kafka_broker import broker_connection
from local.sqs_server import NO_KEY, sqs_connection

PROJECT = Path(__file__).resolve().parent.parent
DEFAULT_HOME = PROJECT / ".local"

CHAT_MODEL = "smollm2-135m-instruct"
EMBEDDING_MODEL = "wordllama-256"
# What runs on this machine costs nothing, which is not the same as an unknown price.
FREE = {"usd_per_million_tokens": {"input": 0, "output": 0}}

# A run's id becomes the name of a folder of logs. As in the Dockerfile, which says more.
RUN_ID_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.~:+-]{0,199}\Z"


def user_environment() -> dict[str, str]:
    """The shell's environment over the project's `.env`."""
    from_file = {key: value for key, value in dotenv_values(PROJECT / ".env").items() if value}
    return {**from_file, **os.environ}


def uses_embedded_model(environment: dict[str, str]) -> bool:
    """Whether none of the user's settings names a language model."""
    return not (environment.get("AIRFLOW_CONN_PYDANTICAI_DEFAULT") or environment.get("OPENAI_API_KEY"))


def uses_embedded_queue(environment: dict[str, str]) -> bool:
    """Whether none of the user's settings names a queue of Amazon SQS or an AWS account."""
    return not (environment.get("GENAI_SQS_QUEUE") or environment.get("AIRFLOW_CONN_AWS_DEFAULT"))


def storage_url(home: Path) -> str:
    """The storage of the stack in this folder, if the user sets no other."""
    return f"file://{home / 'artifacts'}"  # not Path.as_uri(), which escapes: fsspec does not unescape


def enter(home: Path) -> None:
    """Let this process use the storage and the Airflow of the stack in this folder, unless the user sets others.

    Call it before anything imports Airflow, which reads its settings then.
    """
    os.environ.update(
        {"GENAI_STORAGE": storage_url(home.absolute())}
        | user_environment()
        | {"AIRFLOW_HOME": str(home.absolute() / "airflow")}
    )


def airflow_environment(
    home: Path, api_port: int, model_url: str, openai_url: str, broker: str, queue: str, log_ports: tuple[int, int]
) -> dict[str, str]:
    """All variables for the stack's Airflow processes.

    :param home: the stack's folder: database, logs, vectors and artifacts.
    :param model_url: base URL of the embedded model server, up to and with `/v1`.
    :param openai_url: base URL of the emulator of OpenAI's fine-tuning API, likewise.
    :param broker: host and port of the embedded Kafka broker.
    :param queue: URL of the queue of requests on the embedded fake of Amazon SQS.
    :param log_ports: ports on which scheduler and triggerer serve the logs of running tasks.
    """
    user = user_environment()
    api_url = f"http://127.0.0.1:{api_port}"
    settings = {
        "AIRFLOW_HOME": str(home / "airflow"),
        "PYTHONPATH": str(PROJECT),
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        # Most tasks wait for the model, which answers one at a time: these must not keep the others from the cores.
        "AIRFLOW__CORE__PARALLELISM": str(max(5, os.cpu_count() or 2)),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{api_url}/execution/",
        "AIRFLOW__API__BASE_URL": api_url,
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(api_port),
        "AIRFLOW__API__WORKERS": "1",
        # SQLite has one writer at a time. The others wait for it up to 60 seconds, not 5. Tests set another database.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": os.environ.get("LOCAL_DATABASE")
        or f"sqlite:///{home / 'airflow' / 'airflow.db'}?timeout=60",
        # To open a connection costs more than most queries, as SQLite reads the whole schema. With fewer than the API
        # server's 40 threads, those with a connection would wait for a thread, and the others for a connection.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_ENGINE_ARGS": '{"pool_size": 50, "max_overflow": -1}',
        # Edited files are parsed at once nevertheless.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        "AIRFLOW__CORE__HOSTNAME_CALLABLE": "local.guard.host_name",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(log_ports[0]),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(log_ports[1]),
        "AIRFLOW__SCHEDULER__ALLOWED_RUN_ID_PATTERN": RUN_ID_PATTERN,
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "15",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        # On a small machine, more threads per numerical library would only take turns.
        "OMP_NUM_THREADS": "1",
    }
    defaults = {
        "GENAI_STORAGE": storage_url(home),
        # An XCom of up to 1 MB goes into the database, a larger one into a folder.
        "AIRFLOW__CORE__XCOM_BACKEND": "airflow.providers.common.io.xcom.backend.XComObjectStorageBackend",
        "AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_PATH": f"file://{home / 'xcom'}",
        "AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_THRESHOLD": "1048576",
        # A key alone does not ask for a paid training: that takes a connection.
        "AIRFLOW_CONN_OPENAI_DEFAULT": _fine_tuning_connection(openai_url),
        "AIRFLOW_CONN_KAFKA_DEFAULT": broker_connection(broker),
        "AIRFLOW_CONN_VECTOR_STORE_DEFAULT": json.dumps({"conn_type": "lancedb", "host": str(home / "lancedb")}),
    }
    if uses_embedded_model(user):
        defaults["AIRFLOW_CONN_PYDANTICAI_DEFAULT"] = model_connection(model_url, f"openai-chat:{CHAT_MODEL}")
    if uses_embedded_queue(user):
        defaults |= {"GENAI_SQS_QUEUE": queue, "AIRFLOW_CONN_AWS_DEFAULT": sqs_connection(queue)}
    if not user.get("OPENAI_API_KEY"):
        defaults["AIRFLOW_CONN_EMBEDDINGS_DEFAULT"] = model_connection(model_url, f"openai:{EMBEDDING_MODEL}")
    return {**defaults, **user, **settings}


def model_connection(url: str, model: str) -> str:
    extra = {"model": model, **FREE}
    return json.dumps({"conn_type": "pydanticai", "host": url, "password": NO_KEY, "extra": extra})


def _fine_tuning_connection(url: str) -> str:
    extra = {"model": CHAT_MODEL, "training_usd_per_million_tokens": 0, **FREE}
    return json.dumps({"conn_type": "openai", "host": url, "password": NO_KEY, "extra": extra})
