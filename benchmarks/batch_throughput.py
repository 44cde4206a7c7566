"""`batch_inference_at_scale` against a bare asyncio script with the same limits and a task per row, and its memory.

    python -m benchmarks.batch_throughput

The model is scripted (a fake, over real HTTP) and takes 300 ms, or none. Each line has the rows per second of the DAG,
from the trigger to the end of its report, of the script, and the CPU seconds of each: for the DAG those of the whole
Airflow. It takes about half an hour, and a quarter of an hour more for the memory at 100,000 rows. The ratio is what
counts: on a busy machine both are slower.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.batch_rows import FILE, write_rows
from benchmarks.stack import MeasuredStack, last_line_of, measured_stack
from tests.scripted_model import ScriptedServer, running

AT_SCALE, PER_ROW = "batch_inference_at_scale", "batch_inference"
ROWS, MANY_ROWS = 2_000, 20_000  # of many, the start of a run is a small part
MEMORY_ROWS = (1_000, 100_000)
AT_ONCE = 64  # as many as the DAG's two tasks have in flight
REQUESTS_PER_MINUTE = 1200
LATENCY_S = 0.3

MEMORY = """
import resource
from benchmarks.batch_rows import answer_rows
answer_rows()
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


def stack_cpu(stack: MeasuredStack) -> float:
    """CPU seconds of all parts of Airflow, with what has ended."""
    total = 0.0
    for part in ("api-server", "scheduler", "dag-processor", "triggerer"):
        process = stack.process(part)
        total += sum(sum(each.cpu_times()[:4]) for each in [process, *process.children(recursive=True)])
    return total


def compare(stack: MeasuredStack, server: ScriptedServer, rows: int, title: str, per_minute: float | None) -> None:
    """Print a line of the table."""
    file = stack.home / "artifacts" / f"rows-{rows}.csv"
    write_rows(file, rows)
    conf = {"input": f"file://{file}", "text_column": "text", "id_column": None, "limit": rows}
    dag = measured(lambda: stack.api.finish(AT_SCALE, conf), lambda: stack_cpu(stack))
    script = measured(lambda: asyncio.run(bare_script(server.url, rows, per_minute)), own_cpu)
    speeds = f"{rows / dag[0]:7.1f} {rows / script[0]:7.1f} {script[0] / dag[0]:6.2f}"
    print(f"{f'{rows} rows, {title}':44} {speeds} {dag[1]:8.1f} {script[1]:7.1f}", flush=True)


@contextmanager
def stack_with_limits(server: ScriptedServer, **account: Any) -> Iterator[MeasuredStack]:
    """Run a stack whose model is the scripted one, with these limits."""
    os.environ["AIRFLOW_CONN_PYDANTICAI_DEFAULT"] = server.connection(**account)
    with tempfile.TemporaryDirectory() as home, measured_stack(Path(home), AT_SCALE, PER_ROW) as stack:
        stack.api.finish(AT_SCALE, {"limit": 10})  # the first run is slower
        yield stack


def memory_mb(server: ScriptedServer, rows: int) -> float:
    """The most memory of a process that answers so many rows."""
    with tempfile.TemporaryDirectory() as storage:
        write_rows(Path(storage) / FILE, rows)
        environment = {**os.environ, "GENAI_STORAGE": f"file://{storage}"}
        environment["AIRFLOW_CONN_PYDANTICAI_DEFAULT"] = server.connection()
        return float(last_line_of(MEMORY, environment))


def main() -> None:
    with running() as server:
        print(f"{'':44}  rows/s  script  ratio  CPU s  script")
        with stack_with_limits(server, requests_per_minute=REQUESTS_PER_MINUTE) as stack:
            server.script(latency=LATENCY_S)
            title = f"300 ms, {REQUESTS_PER_MINUTE} requests a minute"
            compare(stack, server, ROWS, title, REQUESTS_PER_MINUTE)
        with stack_with_limits(server) as stack:
            for rows in (ROWS, MANY_ROWS):
                server.script(latency=LATENCY_S, refuse=0.1)
                compare(stack, server, rows, "300 ms, 10 % refused (429)", None)
                server.script()
                compare(stack, server, rows, "0 ms", None)
                server.script(latency=LATENCY_S)
                compare(stack, server, rows, "300 ms", None)
            compare(stack, server, 100, "300 ms", None)
            conf = {"reviews": [f"review {n}" for n in range(100)]}
            wall, cpu = measured(lambda: stack.api.finish(PER_ROW, conf), lambda: stack_cpu(stack))
            print(f"{'100 rows, 300 ms, a task per row':44} {100 / wall:7.1f} {'':14} {cpu:8.1f}", flush=True)
        server.script()
        for rows in MEMORY_ROWS:
            print(f"most memory of a worker with {rows:,} rows: {memory_mb(server, rows):.0f} MB", flush=True)


if __name__ == "__main__":
    main()
