"""The attempt of a task that runs: where on the storage it keeps what a retry must not do again.

Airflow gives each attempt a new id, at a retry and at a clear. What differs is `max_tries`: a clear sets it to the last
try plus the task's retries, and nothing else changes it. So a retry, also one after kill -9, looks where the attempts
before it did, and a task that a person has cleared looks elsewhere. The start of the run is there for a run that was
deleted and made anew under the same id.
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
# The answers that may have made an agent fail: more than it lets its model repeat one.
LAST_ANSWERS = 32

# Stores what a connection answers to the call that is made.
keep_answer: ContextVar[Callable[[ModelSource, ModelResponse], Awaitable[None]] | None] = ContextVar(
    "keep_answer", default=None
)

_attempt: TaskAttempt | None = None


class Attempt:
    """Who asks, and where on the storage it finds answers.

    :param asked_by: `dag_id`, `run_id`, and what else says who it is.
    :param task: what its own folder in that of the run is called.
    :raises Exception: the storage cannot be opened. This is done here, in the task's own thread, as Airflow answers one
        at a time who asks for a connection.
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
        """Count the same thing that an attempt does, from 1: its n-th time is the n-th time of the attempt before."""
        self._seen[key] += 1
        return self._seen[key]

    def forget_last_answers(self) -> None:
        """Delete the last answer, and those before it that were refused, as the agent has failed by them."""
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
        self.is_first = ti.try_number == 1  # so that there is nothing to find, but of a run that `dag.test()` repeats
        self.task = list(where.values())


async def keep(source: ModelSource, response: ModelResponse) -> None:
    """Store the answer that a connection gives to the call that is made, where somebody wants it stored."""
    if store := keep_answer.get():
        await store(source, response)


def reusing(model: LayeredModel, reuse: str | timedelta) -> LayeredModel:
    """Return a model that is asked only what is not answered yet: see `include.ai.reuse`."""
    from include.ai.reuse import ReusingModel  # it builds on the model, which builds on this

    return ReusingModel(model, reuse)


def run_folder(dag_id: str, run_id: str) -> ObjectStoragePath:
    """Return where a run keeps its answers."""
    return storage_path(FOLDER, RUNS, name_on_storage(dag_id), name_on_storage(run_id))


def begun_attempt(ti_id: str) -> TaskAttempt | None:
    """Return the attempt of this id, if this process has begun it."""
    return _attempt if _attempt and _attempt.id == ti_id else None


def this_attempt() -> TaskAttempt | None:
    """Return the attempt that this process works for; None outside a task."""
    global _attempt
    context = task_context()
    if context is None:
        return None
    if _attempt is None or _attempt.id != str(context["ti"].id):
        _attempt = TaskAttempt(context)
    return _attempt
