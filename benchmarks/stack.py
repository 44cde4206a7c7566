"""A local stack that a benchmark measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil

from local.processes import free_ports
from local.stack import Stack
from tests.stack import RunningAirflow, now, wait_until

BUNDLE = "airflow.dag_processing.bundles.local.LocalDagBundle"


class MeasuredStack(Stack):
    """A local stack on a free port, whose `api` has what tests need besides."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, free_ports(1)[0])
        self.api: RunningAirflow = RunningAirflow(self.api.url, self.home, now())

    def process(self, part: str) -> psutil.Process:
        """Return the process of a part, such as `scheduler`."""
        pid, _ = json.loads((self.home / "processes.json").read_text())[part]
        return psutil.Process(pid)


@contextmanager
def measured_stack(home: Path, *dag_ids: str) -> Iterator[MeasuredStack]:
    """Run a stack in this folder; the block begins when these DAGs are parsed."""
    stack = MeasuredStack(home)
    try:
        stack.start(say=partial(print, file=sys.stderr))
        wait_until(lambda: {*dag_ids} <= stack.api.dags().keys(), pause=0.5)
        yield stack
    finally:
        stack.stop()


def add_dag(home: Path, dag_id: str, code: str, with_template: bool) -> None:
    """Let the stack of this folder parse one more DAG.

    :param with_template: besides the template's DAGs, not instead of them.
    """
    folder = home / "dags"
    folder.mkdir()
    (folder / f"{dag_id}.py").write_text(code)
    bundles = [{"name": "benchmark", "classpath": BUNDLE, "kwargs": {"path": str(folder)}}]
    if with_template:
        bundles.append({"name": "dags-folder", "classpath": BUNDLE, "kwargs": {}})
    os.environ["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"] = json.dumps(bundles)


def last_line_of(code: str, environment: dict[str, str], *arguments: str) -> str:
    """Run Python code in a process of its own, and return the last line that it prints."""
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1]
