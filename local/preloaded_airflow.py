"""Airflow's command line, with the modules of the AI tasks already imported.

Scheduler and dag-processor fork a process for every task and every parsed file. Forked from here, each finds these
modules loaded, which saves it seconds of CPU. Only what can be forked safely is imported: no module that starts
threads of its own, as LanceDB does.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pydantic_ai.models.openai  # noqa: F401
from airflow.__main__ import main
from airflow.version import version

import include.ai  # noqa: F401

# About a second each: the first two are what LanceDB imports.
SLOW_IMPORTS_OF_TASKS = ("lance_namespace", "pandas", "matplotlib.figure")


def commit_the_audit_log_in_a_thread() -> None:
    """Keep the API server of Airflow 3.3 from standing still on SQLite.

    It commits the audit log on its event loop. If another request has written to the database and not yet committed,
    SQLite makes the loop wait for that commit, which needs the loop: both wait until SQLite's time-out.
    """
    from airflow.api_fastapi.common.db.common import SessionDep
    from airflow.api_fastapi.core_api.security import GetUserDep
    from airflow.api_fastapi.logging import decorators
    from fastapi import Request
    from fastapi.concurrency import run_in_threadpool

    action_logging = decorators.action_logging

    def action_logging_in_a_thread(event: str | None = None) -> Any:
        log_action = action_logging(event)

        async def log_and_commit(request: Request, session: Any, user: Any) -> None:
            await log_action(request, SimpleNamespace(add=session.add, commit=lambda: None), user)
            await run_in_threadpool(session.commit)

        log_and_commit.__annotations__ |= {"request": Request, "session": SessionDep, "user": GetUserDep}
        return log_and_commit

    decorators.action_logging = action_logging_in_a_thread


if __name__ == "__main__":
    if "api-server" in sys.argv and version.startswith("3.3."):
        commit_the_audit_log_in_a_thread()
    if "scheduler" in sys.argv:
        for module in SLOW_IMPORTS_OF_TASKS:
            import_module(module)
    sys.argv[0] = "airflow"
    main()  # type: ignore[no-untyped-call]
