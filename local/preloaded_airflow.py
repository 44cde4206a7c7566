"""Airflow's command line, with the modules of the AI tasks already imported.

Scheduler and dag-processor fork a process for every task and every parsed file. Forked from here, each finds these
modules loaded, which saves it seconds of CPU. Only what can be forked safely is imported: no module that starts
threads of its own, as LanceDB does.
"""

from __future__ import annotations

import sys
from importlib import import_module

import pydantic_ai.models.openai  # noqa: F401
from airflow.__main__ import main

import include.ai  # noqa: F401
from local.one_writer import OneWriter

# About a second each: the first two are what LanceDB imports.
SLOW_IMPORTS_OF_TASKS = ("lance_namespace", "pandas", "matplotlib.figure")


if __name__ == "__main__":
    if "api-server" in sys.argv:
        from airflow.api_fastapi.main import app

        app.add_middleware(OneWriter)
    if "scheduler" in sys.argv:
        for module in SLOW_IMPORTS_OF_TASKS:
            import_module(module)
    sys.argv[0] = "airflow"
    main()  # type: ignore[no-untyped-call]
