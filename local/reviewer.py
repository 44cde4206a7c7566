"""A stand-in for the people whom a DAG asks, as the demo runs without people.

It approves, edits and rejects in turn, to show all three, over the REST API that a person's browser uses. It does not
read what it decides on, so it is not an example of a review.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from time import monotonic
from typing import Any

from local.airflow_api import AirflowAPI

# The states of a task that waits.
WAITING = ("deferred", "awaiting_input")
# An answer that comes at once can reach Airflow before its scheduler has noted that the task waits. The task is then
# retried, and asks again. No person is that fast.
THINKING_TIME_S = 8.0

ADDITION = "\n\nThis line was added in the review."


class Reviewer:
    """Answers the human-in-the-loop requests of runs.

    :param api: a logged-in client of the stack.
    """

    def __init__(self, api: AirflowAPI) -> None:
        self.api = api
        self._ways = cycle(["approve", "edit", "reject"])
        self._first_seen: dict[str, float] = {}  # by task instance; a repeated question is a new one

    def answer(self, dag_id: str, run_id: str) -> Iterator[str]:
        """Answer each open request of the run that is old enough, and yield a line about it."""
        requests = self.api.open_requests(dag_id, run_id)
        for request in sorted(requests, key=lambda request: request["task_instance"]["map_index"]):
            task_instance = request["task_instance"]
            if task_instance["state"] not in WAITING:
                continue
            if self._first_seen.setdefault(task_instance["id"], monotonic()) < monotonic() - THINKING_TIME_S:
                del self._first_seen[task_instance["id"]]
                option, fields = self.decide(request)
                self.api.answer_request(request, option, fields)
                yield f"{request['subject']} {option}: the demo decides, as no person is here"

    def decide(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the option to choose, and the values of the form's fields."""
        way = next(self._ways)
        fields = {name: param["value"] for name, param in request["params"].items()}
        if way == "edit":
            fields = {name: value + ADDITION if isinstance(value, str) else value for name, value in fields.items()}
        return request["options"][-1 if way == "reject" else 0], fields
