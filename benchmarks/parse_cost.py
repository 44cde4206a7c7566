"""CPU seconds to parse each DAG file, in a fresh process, beside one with a single bare `@task.llm`.

    python -m benchmarks.parse_cost

The dag-processor pays this for every file at every parse. A pattern's file may cost at most 10 % more than the bare
one: what a DAG needs from `include/` at import has to be small. Rounds are interleaved and the least of each file
counts, so that a noisy machine disturbs all alike. Exits with 1 if a file is over.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from include.ai import COMMON_AI, active_sdk
from local.environment import PROJECT

ROUNDS = 5
LIMIT = 1.10

MODEL = "llm_conn_id" if active_sdk() == COMMON_AI else "model"
BARE_DAG = f"""
from airflow.sdk import dag, task

@dag(schedule=None)
def bare():
    @task.llm({MODEL}="test", system_prompt="Answer.")
    def ask():
        return "question"

    ask()

bare()
"""


def cpu_seconds(file: Path, environment: dict[str, str]) -> float:
    """User and system time of a process that does nothing but import `file`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    script = f"import runpy; runpy.run_path({str(file)!r})"
    result = subprocess.run([sys.executable, "-c", script], env=environment, cwd=PROJECT, stderr=subprocess.PIPE)
    if result.returncode:
        sys.exit(f"{file} does not import:\n{result.stderr.decode()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder, "bare.py")
        bare.write_text(BARE_DAG)
        files = [bare, *sorted((PROJECT / "dags").rglob("*.py"))]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
            "AIRFLOW_HOME": folder,
            "PYTHONPATH": str(PROJECT),
        }
        cpu_seconds(bare, environment)  # writes airflow.cfg and byte code
        seconds = {file: float("inf") for file in files}
        for _ in range(ROUNDS):
            for file in files:
                seconds[file] = min(seconds[file], cpu_seconds(file, environment))
    print(f"{'DAG file':28} {'CPU s':>6} {'of bare @task.llm':>18}")
    for file in files:
        ratio = seconds[file] / seconds[bare]
        print(f"{file.stem:28} {seconds[file]:6.2f} {ratio:17.2f}x{'  OVER THE LIMIT' if ratio > LIMIT else ''}")
    if max(seconds.values()) > LIMIT * seconds[bare]:
        sys.exit(1)


if __name__ == "__main__":
    main()
