"""Dynamic task mapping: the limit, checked with a readable error, and the results of the mapped tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from airflow.providers.common.compat.sdk import AirflowFailException, conf
from airflow.sdk import get_current_context

Item = TypeVar("Item")


def mappable(items: Sequence[Item]) -> list[Item]:
    """Return the items, if Airflow may make a task of each.

    :raises AirflowFailException: there are more than `[core] max_map_length`. Airflow itself would also fail the
        task that returns them, but without naming a remedy.
    """
    most = conf.getint("core", "max_map_length")
    if len(items) > most:
        raise AirflowFailException(
            f"{len(items)} items are too many to make a task of each: [core] max_map_length is {most}. "
            "Map lists of items instead, as the DAG map_chunks does."
        )
    return list(items)


def chunked(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Return the items in lists of at most `size`, in order."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def failures(names: Sequence[str], results: Sequence[Any]) -> str:
    """Return the end of a sentence that names the items without a result; empty if all have one.

    :param names: a name for each item.
    :param results: what `mapped_results` returned.
    """
    failed = [name for name, result in zip(names, results, strict=True) if result is None]
    return f"; failed: {', '.join(failed)}" if failed else ""


def mapped_results(task_id: str, items: Sequence[Any] | None) -> list[Any]:
    """Return the results of the tasks mapped over `items`, in the order of the items; None for those that failed.

    :raises AirflowFailException: `items` is None, as the task that lists them failed.
    """
    if items is None:
        raise AirflowFailException(f"There is nothing to report on {task_id}: the task that lists its items failed.")
    ti = get_current_context()["ti"]
    return [ti.xcom_pull(task_ids=task_id, map_indexes=n) for n in range(len(items))]
