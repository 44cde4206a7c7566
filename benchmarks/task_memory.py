"""The memory and the CPU that a task costs a worker, by kind of task.

    python -m benchmarks.task_memory [--bare]

A worker forks a process for each task from one that has imported Airflow, and on Celery also the modules that the
Dockerfile names (not with `--bare`). So does this: the child reads the DAG file and does this kind of work, with a fake
model that answers at once. It prints the memory at the end of the work that the child does not share with its parent
(USS) in MB, that of the processes that it started, and the seconds of CPU of all.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import psutil
from airflow.models import import_all_models
from airflow.sdk.execution_time import task_runner  # noqa: F401

from benchmarks.batch_rows import FILE, answer_rows, write_rows
from local.environment import EMBEDDING_MODEL, PROJECT, model_connection
from local.processes import answers, free_ports
from tests.fleet import celery_config
from tests.scripted_model import running
from tests.stack import wait_until

ROWS = 500


def nothing() -> None:
    pass


def ask_model() -> None:
    from pydantic_ai import Agent

    from benchmarks.batch_rows import labels
    from include.ai.model import connection_model

    agent: Agent[None, object] = Agent(
        connection_model("pydanticai_default"), system_prompt="Label.", output_type=labels()
    )
    agent.run_sync("review 1")


def ask_as_an_agent() -> None:
    for _ in range(3):
        ask_model()


def stream() -> None:
    import confluent_kafka  # noqa: F401

    import include.messages.kafka.stream  # noqa: F401

    ask_model()


def rag_index() -> None:
    from include.rag.ingestion import find_changes, index_documents

    changes = find_changes()
    index_documents(changes["collection"], changes["documents"])


def fine_tuning() -> None:
    import openai.resources.fine_tuning  # noqa: F401


def report_with_chart() -> None:
    from include.common.charts import bar_chart

    bar_chart("Reviews", "reviews", {"all": {"positive": 3, "negative": 2}})


# By kind of task: the DAG file that is read, and the work.
KINDS: dict[str, tuple[str, Callable[[], None]]] = {
    "a task without a model": ("scheduling/asset_or_time.py", nothing),
    "a task with one model call": ("patterns/prompt_chaining.py", ask_model),
    "an agent": ("patterns/multi_agent.py", ask_as_an_agent),
    f"a batch's answers ({ROWS} rows, 64 at once)": ("patterns/batch_inference_at_scale.py", answer_rows),
    "a stream": ("messages/stream_inference.py", stream),
    "RAG: find and index 30 documents, LanceDB": ("patterns/rag_pipeline.py", rag_index),
    "fine-tuning: submit a job": ("patterns/fine_tuning.py", fine_tuning),
    "a report with a chart (matplotlib)": ("patterns/batch_inference.py", report_with_chart),
}


def measured(dag_file: str, work: Callable[[], None]) -> tuple[float, float, float]:
    """Do the work; return the MB that this process has of its own then, those of its processes, and CPU seconds."""
    runpy.run_path(str(PROJECT / "dags" / dag_file))
    work()
    me = psutil.Process()
    others = sum(each.memory_full_info().uss for each in me.children(recursive=True))
    return me.memory_full_info().uss / 1e6, others / 1e6, sum(me.cpu_times()[:4])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.task_memory", description=__doc__)
    parser.add_argument("--bare", action="store_true", help="a worker that has imported Airflow only")
    modules = [] if parser.parse_args().bare else json.loads(celery_config())["imports"]
    with tempfile.TemporaryDirectory() as home, running() as model:
        write_rows(Path(home) / FILE, ROWS)
        (port,) = free_ports(1)
        server = subprocess.Popen([sys.executable, "-m", "local.model_server", "--port", str(port)])
        url = f"http://127.0.0.1:{port}"
        os.environ |= {
            "GENAI_STORAGE": home,
            "AIRFLOW_CONN_PYDANTICAI_DEFAULT": model.connection(),
            "AIRFLOW_CONN_EMBEDDINGS_DEFAULT": model_connection(f"{url}/v1", f"openai:{EMBEDDING_MODEL}"),
            "AIRFLOW_CONN_VECTOR_STORE_DEFAULT": json.dumps({"conn_type": "lancedb", "host": f"{home}/lancedb"}),
        }
        try:
            import_all_models()  # as connections in the environment would; a task gets its own from the API server
            for module in modules:
                importlib.import_module(module)
            wait_until(lambda: answers(f"{url}/health"))
            print(f"a process of the worker before a task: {psutil.Process().memory_info().rss / 1e6:.0f} MB")
            print("| task | adds MB | and its processes | CPU s |\n|---|---|---|---|")
            for name, kind in KINDS.items():
                with ProcessPoolExecutor(1, get_context("fork")) as child:
                    own, others, cpu = child.submit(measured, *kind).result()
                print(f"| {name} | {own:.0f} | {others:.0f} | {cpu:.1f} |", flush=True)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
