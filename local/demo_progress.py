"""The progress of the demo's tasks, printed while they run."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.markup import escape

from local.airflow_api import AirflowAPI
from local.demo_result import COLOURS, name_of, seconds_of
from local.reviewer import WAITING, Reviewer

# An update can become visible so much later than its own time, as SQLite has one writer and the others wait.
LATE_S = 60


class Progress:
    """Follows the tasks of many runs with one request per look, and stands in for the people whom they ask.

    :param say: prints a line of rich's markup.
    """

    def __init__(self, api: AirflowAPI, say: Callable[[str], None]) -> None:
        self._api = api
        self._say = say
        self._reviewer = Reviewer(api)
        self._looked = datetime.now(UTC)
        self._tasks: dict[tuple[str, str, str, int], dict[str, Any]] = {}
        self._reported: set[tuple[str, str, str, int]] = set()

    def look(self, runs: dict[str, str]) -> list[str]:
        """Report each task that has ended since the last look, and answer for people.

        :param runs: the run to look at, by DAG id.
        :returns: the names of the running tasks.
        """
        since, self._looked = self._looked - timedelta(seconds=LATE_S), datetime.now(UTC)
        for task in self._api.task_instances(updated_at_gte=since.isoformat()):
            self._tasks[task["dag_id"], task["dag_run_id"], task["task_id"], task["map_index"]] = task
        at_work, waiting = [], set()
        for key, task in self._tasks.items():
            dag_id, run_id, *_ = key
            if runs.get(dag_id) != run_id:
                continue
            if task["state"] == "running":
                at_work.append(f"{dag_id}.{name_of(task)}")
            elif task["state"] in WAITING:
                waiting.add((dag_id, run_id))
            elif task["state"] in COLOURS and key not in self._reported:
                self._reported.add(key)
                self._report(task)
        for dag_id, run_id in sorted(waiting):
            for answer in self._reviewer.answer(dag_id, run_id):
                self._say(escape(answer))
        return at_work

    def _report(self, task: dict[str, Any]) -> None:
        colour = COLOURS[task["state"]]
        seconds = f"[dim]{seconds_of(task):.1f} s[/dim]" if task["start_date"] and task["end_date"] else ""
        name = escape(f"{task['dag_id']}.{name_of(task)}")
        self._say(f"[{colour}]{task['state']:8}[/{colour}] {name} {seconds}")
