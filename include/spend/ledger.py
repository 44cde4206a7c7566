"""The ledger: what each attempt of a task asked of models, and what that cost.

Every process that works on an attempt writes one small record to `<storage>/ledger/attempts/<day>/`, and writes it
again while it works: at most once a second, in a thread of its own, so that no call waits for it. A killed process
loses its last second. Records hold numbers, names and fingerprints; no prompt, no answer, no key.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, NamedTuple
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from include.common.fingerprint import fingerprint
from include.common.shown import LONGEST_NAME, shown_text
from include.common.storage import storage_path, write_artifact
from include.common.task_context import task_context
from include.common.task_ends import on_task_end

FOLDER = ("ledger", "attempts")
# Between two writes of a process, and how long the end of a task waits for the last one.
PAUSE_S = 1.0
LAST_WRITE_S = 5.0

# Any sum of them fits into 64 bits.
Count = Annotated[int, Field(ge=-1, le=10**12)]

log = logging.getLogger(__name__)


class Call(NamedTuple):
    """A call of a model, or several that the ledger counts together, such as a paid job's.

    :param kind: `chat`, `embedding`, `batch` or `tuning`.
    :param prompt: the fingerprint of what the call's author wrote: see `include.common.fingerprint`.
    :param cost_usd: US dollars; None if the price is unknown.
    :param failed: whether it has no answer.
    :param reused: how many calls stored answers replaced; `saved_usd` is what these answers had cost.
    """

    kind: str
    conn_id: str
    model: str
    prompt: str = ""
    calls: int = 1
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    cost_usd: float | None = None
    failed: bool = False
    reused: int = 0
    saved_usd: float = 0.0


class Line(BaseModel):
    """The sum of an attempt's calls of one kind, connection, model and prompt.

    `cost_usd` is the cost of the calls whose price is known; `unpriced` is the number of the other answered calls.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    kind: str
    conn_id: str
    model: str
    prompt: str
    calls: Count = 0
    failed: Count = 0
    unpriced: Count = 0
    input_tokens: Count = 0
    cached_tokens: Count = 0
    output_tokens: Count = 0
    seconds: float = 0.0
    cost_usd: float = 0.0
    reused: Count = 0
    saved_usd: float = 0.0


class Record(BaseModel):
    """What one process did for one attempt of a task.

    `state` is `success`, `failed`, `skipped`, or `unfinished`: the task still runs, is deferred, or was killed.
    """

    id: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: Count
    try_number: Count
    logical_date: datetime | None
    started: datetime
    updated: datetime
    state: str = "unfinished"
    lines: list[Line] = []

    def add(self, call: Call) -> None:
        """Count a call."""
        key = call[:4]
        line = next((each for each in self.lines if (each.kind, each.conn_id, each.model, each.prompt) == key), None)
        if line is None:
            line = Line(kind=call.kind, conn_id=call.conn_id, model=call.model, prompt=call.prompt)
            self.lines.append(line)
        line.calls += call.calls
        line.failed += call.calls if call.failed else 0
        line.unpriced += call.calls if call.cost_usd is None and not call.failed else 0
        line.input_tokens += call.input_tokens
        line.cached_tokens += call.cached_tokens
        line.output_tokens += call.output_tokens
        line.seconds = round(line.seconds + call.seconds, 3)
        line.cost_usd += call.cost_usd or 0.0
        line.reused += call.reused
        line.saved_usd += call.saved_usd

    @property
    def has_ended(self) -> bool:
        """Whether the record will not change any more."""
        return self.state != "unfinished"

    @property
    def file(self) -> tuple[str, ...]:
        """The path of its file on the storage."""
        return (*FOLDER, self.started.date().isoformat(), f"{self.id}.json")


def new_record(context: Any, record_id: str, started: datetime) -> Record:
    """Make the record of a task instance, given its context."""
    ti = context["ti"]
    return Record(
        id=record_id,
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=-1 if ti.map_index is None else ti.map_index,
        try_number=ti.try_number,
        logical_date=context.get("logical_date"),
        started=started,
        updated=started,
    )


class Ledger:
    """The records of this process, which a thread writes."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._unwritten: dict[str, Record] = {}
        self._counting, self._writing = threading.Lock(), threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._complained = False
        self._others: list[Callable[[], None]] = []

    def also_write(self, write: Callable[[], None]) -> None:
        """Have the thread also call this after each write."""
        self._others.append(write)

    def record(self, call: Call) -> None:
        """Count a call for the running task; outside a task, do nothing."""
        if context := task_context():
            attempt_id = str(context["ti"].id)
            if attempt_id not in self._records:
                self.open_storage()
            with self._counting:
                if attempt_id not in self._records:
                    self._records[attempt_id] = new_record(context, uuid4().hex, datetime.now(UTC))
                self._count(attempt_id, self._records[attempt_id], call)

    def open_storage(self) -> None:
        """Open the storage in the task's own thread, as Airflow answers requests for a connection one at a time."""
        try:
            storage_path()
        except Exception as error:
            self._complain(error)

    def record_job(self, call: Call, job_id: str, started: datetime) -> None:
        """Count a job that the running task has paid: once, however often its end is seen."""
        if context := task_context():
            self.open_storage()
            job = fingerprint(call.conn_id, job_id)
            record = new_record(context, job, started)
            record.state = "failed" if call.failed else "success"
            with self._counting:
                self._count(job, record, call)

    def end(self, attempt_id: str, state: str, _error: Any = None) -> None:
        """Record how an attempt ended."""
        with self._counting:
            if record := self._records.pop(attempt_id, None):
                record.state = state
                self._unwritten[attempt_id] = record

    def flush(self) -> None:
        """Write what is not written yet, and wait at most LAST_WRITE_S seconds for it."""
        if self._unwritten or self._writing.locked():
            writer = threading.Thread(target=self._write, daemon=True)
            writer.start()
            writer.join(LAST_WRITE_S)

    def _count(self, key: str, record: Record, call: Call) -> None:
        record.add(call._replace(model=shown_text(call.model, longest=LONGEST_NAME)))
        self._unwritten[key] = record
        if self._thread is None or not self._thread.is_alive():  # as after a fork
            self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
            self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        pause = threading.Event()
        while self._wake.wait():
            self._wake.clear()
            self._write()
            pause.wait(PAUSE_S)

    def _write(self) -> None:
        with self._writing:
            with self._counting:
                waiting, self._unwritten = self._unwritten, {}
                for record in waiting.values():
                    record.updated = datetime.now(UTC)
                texts = {key: record.model_dump_json() for key, record in waiting.items()}
            for key, text in texts.items():
                try:
                    write_artifact(storage_path(*waiting[key].file), text)
                except Exception as error:
                    with self._counting:
                        self._unwritten.setdefault(key, waiting[key])
                    self._complain(error)
            for write in self._others:
                try:
                    write()
                except Exception as error:
                    self._complain(error)

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            log.warning("The task continues, but what it spends is not recorded: %s", shown_text(error))
        self._complained = True


@cache
def the_ledger() -> Ledger:
    """Return the ledger of this process."""
    ledger = Ledger()
    on_task_end(ledger.end, ledger.flush)
    atexit.register(ledger.flush)
    return ledger


def record(call: Call) -> None:
    """Count a call for the running task."""
    the_ledger().record(call)


def record_job(call: Call, job_id: str, started: datetime) -> None:
    """Count a paid job for the running task."""
    the_ledger().record_job(call, job_id, started)
