"""How a process hears of the ends of its tasks."""

from __future__ import annotations

from typing import Any


def add_listener(listener: Any) -> None:
    """Have Airflow report the end of each task of this process to a listener: see `airflow.listeners`."""
    try:
        from airflow.sdk.listener import get_listener_manager  # type: ignore[import-not-found,unused-ignore]
    except ImportError:  # Airflow 3.1
        from airflow.listeners.listener import get_listener_manager  # type: ignore[assignment,unused-ignore]

    manager: Any = get_listener_manager()
    manager.add_listener(listener)
