"""The context of the running task, if there is one."""

from __future__ import annotations

from typing import Any


def task_context() -> Any:
    """Return the context of the running task; None outside a task."""
    from airflow.sdk import get_current_context

    try:
        return get_current_context()
    except RuntimeError:
        return None
