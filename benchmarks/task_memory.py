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
import resource
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
from airflow.models import import_all_models
from airflow.sdk.execution_time import task_runner  # noqa: F401

from benchmarks.batch_rows import FILE, write_rows
from local.environment import EMBEDDING_MODEL, PROJECT, model_connection
from local.processes import answers, free_ports
from tests.fleet import celery_config
from tests.scripted_model import running
from tests.stack import wait_until

ROWS = 500


def plain() -> None:
    dag_file("scheduling/asset_or_time.py")


def llm() -> None:
    dag_file("patterns/prompt_chaining.py")
    ask_model("review 1")


def agent() -> None:
    dag_file("patterns/multi_agent.py")
    for _ in range(3):
        ask_model("review 1")


def batch_answers() -> None:
    dag_file("patterns/batch_inference_at_scale.py")
    from benchmarks.batch_rows import answer_rows

    answer_rows()


def stream() -> None:
    dag_file("messages/stream_inference.py")
    import confluent_kafka  # noqa: F401

    import include.messages.kafka.stream  # noqa: F401

    ask_model("review 1")


def rag_index() -> None:
    dag_file("patterns/rag_pipeline.py")
    from include.rag.ingestion import find_changes, index_documents

    changes = find_changes()
    index_documents(changes["collection"], changes["documents"])


def fine_tuning() -> None:
    dag_file("patterns/fine_tuning.py")
    import openai.resources.fine_tuning  # noqa: F401


def report_with_chart() -> None:
    dag_file("patterns/batch_inference.py")
    from include.common.charts import bar_chart

    bar_chart("Reviews", "reviews", {"all": {"positive": 3, "negative": 2}})


KINDS: dict[str, Callable[[], None]] = {
    "a task without a model": plain,
    "a task with one model call": llm,
    "an agent": agent,
    f"a batch's answers ({ROWS} rows, 64 at once)": batch_answers,
    "a stream": stream,
    "RAG: find and index 30 documents, LanceDB": rag_index,
    "fine-tuning: submit a job": fine_tuning,
    "a report with a chart (matplotlib)": report_with_chart,
}


def dag_file(name: str) -> None:
    runpy.run_path(str(PROJECT / "dags" / name))


def ask_model(text: str) -> None:
    from pydantic_ai import Agent

    from benchmarks.batch_rows import labels
    from include.ai.model import connection_model

    agent: Agent[None, object] = Agent(
        connection_model("pydanticai_default"), system_prompt="Label.", output_type=labels()
    )
    agent.run_sync(text)


def measure(do: Callable[[], None]) -> tuple[float, float, float]:
    """Return the MB that a forked child has of its own after the work, those of its processes, and their CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(writing)
        with open(reading) as pipe:
            found = pipe.read()
        os.waitpid(child, 0)
        own, others = map(float, found.split())
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return own, others, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    try:
        os.close(reading)
        do()
        me = psutil.Process()
        own = me.memory_full_info().uss / 1e6
        others = sum(each.memory_full_info().uss for each in me.children(recursive=True)) / 1e6
        os.write(writing, f"{own} {others}".encode())
    finally:
        os._exit(0)


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
            for name, do in KINDS.items():
                own, others, cpu = measure(do)
                print(f"| {name} | {own:.0f} | {others:.0f} | {cpu:.1f} |", flush=True)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
