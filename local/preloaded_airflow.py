"""Airflow's command line, with the modules of the AI tasks already imported.

Scheduler and dag-processor fork a process for every task and every parsed file. Each fork finds these modules loaded,
which saves it seconds of CPU. Only what can be forked safely is imported: no module that starts threads, as LanceDB
does.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import uvicorn
from airflow.__main__ import main
from airflow.sdk.execution_time.supervisor import WatchedSubprocess
from airflow.utils.serve_logs import core as log_server

from local.guard import HOST, Guard
from local.one_writer import OneWriter

SLOW_IMPORTS_OF_DAGS = ("pydantic_ai.models.openai", "include.ai")
# A fifth of a second or more each. The first two are imported by LanceDB; Airflow imports the file systems of all
# providers when a task opens its first path, even a local one.
SLOW_IMPORTS_OF_TASKS = ("lance_namespace", "pandas", "matplotlib.figure", "airflow.providers.amazon.aws.fs.s3")

# How often to check whether a process that has closed its sockets has ended.
END_POLL_S = 0.05


def notice_ends_soon() -> None:
    """Let the supervisor of a task notice at once that its process has ended.

    It sleeps until a socket of the process wakes it, or until the next heartbeat. Without this, a process that ends a
    moment after its sockets are closed occupies a slot of the executor until that heartbeat.
    """
    service = WatchedSubprocess._service_subprocess

    def service_or_poll(self: WatchedSubprocess, max_wait_time: float, **options: Any) -> Any:
        return service(self, max_wait_time if self._open_sockets else min(max_wait_time, END_POLL_S), **options)

    WatchedSubprocess._service_subprocess = service_or_poll  # type: ignore[method-assign, assignment]


def serve_here_only(app: str, **options: Any) -> None:
    """Serve logs on 127.0.0.1. Airflow does so on all interfaces, which no setting changes."""
    uvicorn.run(app, **{**options, "host": HOST})


# Not below, as the log server is a separate process, which on macOS imports this module again.
log_server.uvicorn = SimpleNamespace(run=serve_here_only)  # type: ignore[assignment, attr-defined]

if __name__ == "__main__":
    if "api-server" in sys.argv:
        from airflow.api_fastapi.main import app

        app.add_middleware(OneWriter)
        app.add_middleware(Guard)
    slow_imports: tuple[str, ...] = ()
    if "dag-processor" in sys.argv:
        slow_imports = SLOW_IMPORTS_OF_DAGS
    if "scheduler" in sys.argv:
        notice_ends_soon()
        slow_imports = SLOW_IMPORTS_OF_DAGS + SLOW_IMPORTS_OF_TASKS
    for module in slow_imports:
        import_module(module)
    if slow_imports:
        import_module("include.ai").llm_kwargs()  # imports the layers that are present
    sys.argv[0] = "airflow"
    main()  # type: ignore[no-untyped-call]
