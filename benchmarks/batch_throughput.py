"""`batch_inference_at_scale` against a bare asyncio script with the same limits and a task per row, and its memory.

    python -m benchmarks.batch_throughput [--rows 2000] [--many-rows 20000] [--memory-rows 100000]

The model is scripted (a fake, over real HTTP) and takes 300 ms, or none. Each line has the rows per second of the DAG,
from the trigger to the end of its report, of the script, and the CPU seconds of each: for the DAG those of the whole
Airflow. Takes about half an hour, and a quarter for the memory at 100,000 rows. The ratio is what counts: on a busy
machine both are slower.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from local.environment import PROJECT
from local.processes import free_ports
from local.stack import Stack
from tests.scripted_model import ScriptedServer, running

AT_SCALE, PER_ROW = "batch_inference_at_scale", "batch_inference"
AT_ONCE = 64  # as many as the DAG's two tasks have in flight
REQUESTS_PER_MINUTE = 1200
LATENCY_S = 0.3

MEMORY = """
import asyncio, resource
from typing import Literal
from include.ai import BaseModel
from include.batch.answering import Answering
from include.batch.chunks import Chunk, write_chunks
from include.batch.rows import read_rows
from include.common.storage import storage_path

class Labels(BaseModel):
    sentiment: Literal["positive", "negative", "neutral"]

folder = storage_path("memory")
chunks = list(write_chunks(read_rows(storage_path("rows.csv"), "text", None), "", folder, 1))
work = Answering([Chunk(folder / name) for name, _ in chunks], sum(n for _, n in chunks), system_prompt="Label.",
                 output_type=Labels, at_once=64, budget_usd=None)
asyncio.run(work.run())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


async def bare_script(url: str, rows: int, requests_per_minute: float | None) -> None:
    """What one would write by hand: a client, a semaphore, a pace. It keeps the answers in memory."""
    from openai import AsyncOpenAI

    places = asyncio.Semaphore(AT_ONCE)
    properties = {"sentiment": {"enum": ["positive", "negative"]}, "topic": {"enum": ["device", "app"]}}
    tool: Any = {"type": "function", "function": {"name": "answer", "parameters": {"properties": properties}}}
    start, gap = time.monotonic(), 60 / requests_per_minute if requests_per_minute else 0.0

    async def ask(number: int) -> Any:
        async with places:
            await asyncio.sleep(start + number * gap - time.monotonic())
            messages: Any = [{"role": "user", "content": f"review {number}"}]
            reply: Any = await client.chat.completions.create(model="scripted", messages=messages, tools=[tool])
            return json.loads(reply.choices[0].message.tool_calls[0].function.arguments)

    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=10) as client:
        answers = await asyncio.gather(*map(ask, range(rows)))
    assert len(answers) == rows


def measured(work: Callable[[], Any], cpu_seconds: Callable[[], float]) -> tuple[float, float]:
    """Wall and CPU seconds of the work."""
    started, before = time.monotonic(), cpu_seconds()
    work()
    return time.monotonic() - started, cpu_seconds() - before


def own_cpu() -> float:
    """CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def stack_cpu(stack: Stack) -> float:
    """CPU seconds of all of Airflow, with what has ended."""
    total = 0.0
    for name, (pid, _) in json.loads((stack.home / "processes.json").read_text()).items():
        if name not in ("model-server", "openai-emulator"):
            family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            total += sum(sum(process.cpu_times()[:4]) for process in family)
    return total


def run_dag(stack: Stack, dag_id: str, conf: dict[str, Any]) -> None:
    """Trigger the DAG and wait for its success."""
    run_id = stack.api.trigger(dag_id, conf)
    while (state := stack.api.run(dag_id, run_id)["state"]) not in ("success", "failed"):
        time.sleep(0.2)
    assert state == "success", f"{dag_id} failed"


def compare(stack: Stack, server: ScriptedServer, rows: int, requests_per_minute: float | None, title: str) -> None:
    """A line of the table."""
    conf = {"input": f"file://{stack.home}/artifacts/rows-{rows}.csv", "text_column": "text", "id_column": None}
    dag = measured(lambda: run_dag(stack, AT_SCALE, {**conf, "limit": rows}), lambda: stack_cpu(stack))
    script = measured(lambda: asyncio.run(bare_script(server.url, rows, requests_per_minute)), own_cpu)
    speeds = f"{rows / dag[0]:7.1f} {rows / script[0]:7.1f} {script[0] / dag[0]:6.2f}"
    more = f"{1000 * (dag[0] - script[0]) / rows:+.1f} ms a row"
    print(f"{title:44} {speeds} {dag[1]:8.1f} {script[1]:7.1f}   {more}", flush=True)


def write_rows(path: Path, rows: int) -> None:
    """A file of so many rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("text\n" + "".join(f"review {n}\n" for n in range(rows)))


def with_stack(server: ScriptedServer, account: dict[str, Any], work: Callable[[Stack], None]) -> None:
    """Do the work on a stack whose model is the scripted one, with these limits."""
    os.environ["AIRFLOW_CONN_PYDANTICAI_DEFAULT"] = server.connection(**account)
    with tempfile.TemporaryDirectory() as home:
        stack = Stack(Path(home), free_ports(1)[0])
        try:
            stack.start(say=lambda _: None)
            while not {AT_SCALE, PER_ROW} <= stack.api.dags().keys():
                time.sleep(0.5)
            run_dag(stack, AT_SCALE, {"limit": 10})  # the first run is slower
            work(stack)
        finally:
            stack.stop()


def memory_mb(server: ScriptedServer, rows: int) -> float:
    """The most memory of a process that answers so many rows."""
    with tempfile.TemporaryDirectory() as storage:
        write_rows(Path(storage) / "rows.csv", rows)
        environment = {**os.environ, "GENAI_STORAGE": f"file://{storage}"}
        environment["AIRFLOW_CONN_PYDANTICAI_DEFAULT"] = server.connection()
        command = [sys.executable, "-W", "ignore", "-c", MEMORY]
        done = subprocess.run(command, env=environment, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch_throughput", description=__doc__)
    parser.add_argument("--rows", type=int, default=2000, help="rows of each comparison (default: %(default)s)")
    parser.add_argument("--many-rows", type=int, default=20_000, help="rows where a run's start is to weigh little")
    parser.add_argument("--memory-rows", type=int, default=100_000, help="rows of the second memory reading")
    arguments = parser.parse_args()
    rows, many = arguments.rows, arguments.many_rows
    with running() as server:
        print(f"{'':44}  rows/s  script  ratio  CPU s  script")

        def limited(stack: Stack) -> None:
            write_rows(stack.home / "artifacts" / f"rows-{rows}.csv", rows)
            server.script(latency=LATENCY_S)
            title = f"{rows} rows, 300 ms, {REQUESTS_PER_MINUTE} requests a minute"
            compare(stack, server, rows, REQUESTS_PER_MINUTE, title)

        def free(stack: Stack) -> None:
            for count in (rows, many, 100):
                write_rows(stack.home / "artifacts" / f"rows-{count}.csv", count)
            for count in dict.fromkeys((rows, many)):
                server.script(latency=LATENCY_S, refuse=0.1)
                compare(stack, server, count, None, f"{count} rows, 300 ms, 10 % refused (429)")
                server.script()
                compare(stack, server, count, None, f"{count} rows, 0 ms")
                server.script(latency=LATENCY_S)
                compare(stack, server, count, None, f"{count} rows, 300 ms")
            compare(stack, server, 100, None, "100 rows, 300 ms")
            conf = {"reviews": [f"review {n}" for n in range(100)]}
            wall, cpu = measured(lambda: run_dag(stack, PER_ROW, conf), lambda: stack_cpu(stack))
            print(f"{'100 rows, 300 ms, a task per row':44} {100 / wall:7.1f} {'':14} {cpu:8.1f}", flush=True)

        with_stack(server, {"requests_per_minute": REQUESTS_PER_MINUTE}, limited)
        with_stack(server, {}, free)
        server.script()
        for count in filter(None, (1_000, arguments.memory_rows)):
            print(f"most memory of a worker with {count:,} rows: {memory_mb(server, count):.0f} MB", flush=True)


if __name__ == "__main__":
    main()
