"""Airflow's command line, with the modules of the AI tasks already imported.

Scheduler and dag-processor fork a process for every task and every parsed file. Forked from here, each finds these
modules loaded, which saves it about two seconds of CPU. Only what can be forked safely is imported: no module that
starts threads.
"""

from __future__ import annotations

import sys

import pydantic_ai.models.openai  # noqa: F401
from airflow.__main__ import main

import include.ai  # noqa: F401

if __name__ == "__main__":
    sys.argv[0] = "airflow"
    main()  # type: ignore[no-untyped-call]
