"""Notify a process when its tasks end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow.listeners import hookimpl


class _Listener:
    def __init__(self, heard: Callable[[str, str, Any], None], stopping: Callable[[], None]) -> None:
        self._heard, self._stopping = heard, stopping

    @hookimpl
    def on_task_instance_success(self, task_instance: Any) -> None:
        self._heard(str(task_instance.id), "success", None)

    @hookimpl
    def on_task_instance_failed(self, task_instance: Any, error: Any) -> None:
        self._heard(str(task_instance.id), "failed", error)

    @hookimpl
    def on_task_instance_skipped(self, task_instance: Any) -> None:
        self._heard(str(task_instance.id), "skipped", None)

    @hookimpl
    def before_stopping(self) -> None:
        self._stopping()


def on_task_end(heard: Callable[[str, str, Any], None], stopping: Callable[[], None] = lambda: None) -> None:
    """Have Airflow report the end of each task of this process, from now on.

    :param heard: is called with the attempt's id, its state (`success`, `failed` or `skipped`), and its error.
    :param stopping: is called before the process stops, also if the task continues later, as a deferred one does.
    """
    try:
        from airflow.sdk.listener import get_listener_manager  # type: ignore[import-not-found,unused-ignore]
    except ImportError:  # Airflow 3.1
        from airflow.listeners.listener import get_listener_manager  # type: ignore[assignment,unused-ignore]

    manager: Any = get_listener_manager()
    manager.add_listener(_Listener(heard, stopping))
