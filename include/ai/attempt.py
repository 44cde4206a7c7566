"""The attempt of a running task: where on the storage it keeps what a retry must not do again.

Airflow gives each attempt a new id, at a retry and at a clear. What differs is `max_tries`: a clear sets it to the last
try plus the task's retries, and nothing else changes it. So a retry, even after kill -9, looks in the same place as the
attempts before it, and a cleared task looks elsewhere. The start of the run distinguishes a run that was deleted and
created again under the same id.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from include.common.storage import name_on_storage, storage_path
from include.common.task_context import task_context

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath
    from pydantic_ai.messages import ModelResponse

    from include.ai.connection import ModelSource
    from include.ai.layers import LayeredModel

FOLDER = "stored_answers"
RUNS, SHARED = "runs", "shared"
# The answers that may have made an agent fail: more than it lets its model retry an answer.
LAST_ANSWERS = 32

# Stores the answer of a connection to the current call, if it is to be stored.
keep_answer: ContextVar[Callable[[ModelSource, ModelResponse], Awaitable[None]] | None] = ContextVar(
    "keep_answer", default=None
)

_attempt: TaskAttempt | None = None


class Attempt:
    """Who asks, and where on the storage it finds answers.

    :param asked_by: `dag_id`, `run_id`, and whatever else identifies it.
    :param task: the name of its folder within the run's folder.
    :raises Exception: the storage cannot be opened. It is opened here, in the task's own thread, because Airflow serves
        requests for connections one at a time.
    """

    is_first = False

    def __init__(self, asked_by: dict[str, str | int], task: str) -> None:
        run = run_folder(str(asked_by["dag_id"]), str(asked_by["run_id"]))
        self.asked_by = asked_by
        self.shared = storage_path(FOLDER, SHARED)
        self.of_run = run / "all_tasks"
        self.of_task = run / name_on_storage(task)
        self.last_answers: deque[tuple[ObjectStoragePath, bool]] = deque(maxlen=LAST_ANSWERS)
        self._seen: Counter[str] = Counter()

    def number(self, key: str) -> int:
        """Count repetitions of the same thing, from 1: the n-th time matches the n-th time of the attempt before."""
        self._seen[key] += 1
        return self._seen[key]

    def forget_last_answers(self) -> None:
        """Delete the last answer, and the refused ones before it, because they made the agent fail."""
        while self.last_answers:
            file, is_repeated = self.last_answers.pop()
            with suppress(OSError):
                file.fs.rm_file(file.path)
            if not is_repeated:
                return


class TaskAttempt(Attempt):
    """An attempt of a task, given its context."""

    def __init__(self, context: Any) -> None:
        ti, started = context["ti"], context["dag_run"].start_date
        map_index = -1 if ti.map_index is None else ti.map_index
        where = {"dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": ti.task_id, "map_index": map_index}
        start_ms = int(started.timestamp() * 1000) if started else 0
        super().__init__({**where, "try_number": ti.try_number}, f"{ti.task_id}.{map_index}.{ti.max_tries}.{start_ms}")
        self.id = str(ti.id)
        self.is_first = ti.try_number == 1  # nothing is stored yet, except for a run that `dag.test()` repeats
        self.task = list(where.values())


def reusing(model: LayeredModel, reuse: str | timedelta) -> LayeredModel:
    """Return a model that is only asked what has no stored answer yet: see `include.ai.reuse`."""
    from include.ai.reuse import ReusingModel  # imports the model, which imports this module

    return ReusingModel(model, reuse)


def run_folder(dag_id: str, run_id: str) -> ObjectStoragePath:
    """Return the folder of a run's answers."""
    return storage_path(FOLDER, RUNS, name_on_storage(dag_id), name_on_storage(run_id))


def begun_attempt(ti_id: str) -> TaskAttempt | None:
    """Return the attempt with this id, if this process began it."""
    return _attempt if _attempt and _attempt.id == ti_id else None


def this_attempt() -> TaskAttempt | None:
    """Return the attempt that this process runs; None outside a task."""
    global _attempt
    context = task_context()
    if context is None:
        return None
    if _attempt is None or _attempt.id != str(context["ti"].id):
        _attempt = TaskAttempt(context)
    return _attempt
