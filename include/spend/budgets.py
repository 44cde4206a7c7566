"""Budgets: what a connection may cost in a day, a month or a run, and a task by itself.

`{"budgets": {"day_usd": 20, "month_usd": 300, "run_usd": 5, "warn_at": 0.8}}` in a connection's extra, and
`llm_kwargs(budget_usd=0.5)` for one task. They are checked before a task's first call, and then once a second while it
works; a call that is in flight when the limit is reached is not cancelled. So a budget is overspent at most by the
calls in flight, and by what other tasks spend within the same second. Days and months are in UTC.

A paid job, such as a batch at the provider, counts with its estimate from its creation, and with its cost from its end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from pydantic import BaseModel, ConfigDict, PositiveFloat

from include.common.connection_extra import read_setting
from include.common.fingerprint import fingerprint
from include.common.prices import shown_usd
from include.common.shared_total import SharedTotal
from include.common.shown import shown_text
from include.common.storage import name_on_storage
from include.common.task_context import task_context

BUDGETS_KEY = "budgets"
FOLDER = "budgets"
FRESH_S = 1.0
PRICE_FORM = '"usd_per_million_tokens": {"input": ..., "output": ...}'

log = logging.getLogger(__name__)


class Budgets(BaseModel):
    """What a connection may cost, in US dollars; None: no limit. `warn_at` is the share at which the log warns."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    day_usd: PositiveFloat | None = None
    month_usd: PositiveFloat | None = None
    run_usd: PositiveFloat | None = None
    warn_at: PositiveFloat = 0.8


class Limit(NamedTuple):
    """A budget that holds now: what it is for, and where its sum is kept."""

    what: str
    usd: float
    advice: str
    total: SharedTotal


def read_budgets(conn_id: str, extra: Mapping[str, Any]) -> Budgets | None:
    """Read a connection's budgets; None if it has none.

    :raises AirflowFailException: they are not valid.
    """
    budgets: Budgets | None = read_setting(conn_id, extra, BUDGETS_KEY, Budgets)
    return budgets


def periods(conn_id: str, budgets: Budgets, now: datetime) -> list[Limit]:
    """Return the limits of a connection for the day and the month."""
    found, day = [], now.date().isoformat()
    for name, usd, period in (("day", budgets.day_usd, day), ("month", budgets.month_usd, day[:7])):
        if usd:
            advice = f"Wait for the next one, or raise {name}_usd in the budgets of the connection's extra."
            total = SharedTotal((FOLDER, name_on_storage(conn_id), period))
            found.append(Limit(f"{name} {period}", usd, advice, total))
    return found


class Meter:
    """What a task spends on a connection that has budgets.

    :param task_usd: what the task itself may cost, over all its tries.
    :param unpriced: the model, if its price is not known: then no call is allowed.
    :param price_form: how the connection's extra states the price.
    """

    def __init__(
        self,
        conn_id: str,
        budgets: Budgets,
        task_usd: float | None,
        unpriced: str = "",
        price_form: str = PRICE_FORM,
    ) -> None:
        self._conn_id, self._budgets = conn_id, budgets
        self._of_task = _of_task(conn_id, budgets.run_usd, task_usd)
        self._lock = threading.Lock()
        self._unsaved = 0.0
        self._owed: list[tuple[SharedTotal, float]] = []
        self._looked_at = 0.0
        self._warned: set[str] = set()
        self._unpriced, self._price_form = unpriced, price_form

    def add(self, cost_usd: float | None, model: str) -> None:
        """Count what a call cost."""
        with self._lock:
            if cost_usd is None:
                self._unpriced = model
            else:
                self._unsaved += cost_usd

    def save(self) -> None:
        """Add what was counted to the sums that all tasks share.

        :raises OSError: the storage cannot be read or written; the next call adds what is missing.
        """
        with self._lock:
            amount, self._unsaved = self._unsaved, 0.0
            if amount:
                self._owed += [(limit.total, amount) for limit in self._limits()]
            while self._owed:
                total, owed = self._owed[0]
                total.add(owed)
                del self._owed[0]

    @property
    def is_fresh(self) -> bool:
        """Whether the sums were checked within the last second."""
        return bool(self._looked_at) and time.monotonic() - self._looked_at < FRESH_S

    def check(self, next_usd: float = 0.0) -> None:
        """Check that the budgets allow another call.

        :param next_usd: what it will cost, if that is known.
        :raises AirflowFailException: they do not, or a price is not known.
        :raises AirflowException: the storage cannot be read.
        """
        if self._unpriced:
            raise AirflowFailException(
                f"Connection {self._conn_id!r} has a budget, but the price of {self._unpriced!r} is not known. Set "
                f"{{{self._price_form}}} in its extra."
            )
        for limit in self._limits():
            try:
                with self._lock:  # not while `save` moves an amount
                    own = self._unsaved + sum(owed for total, owed in self._owed if total == limit.total)
                    spent = limit.total.read() + own
            except Exception as error:
                raise AirflowException(
                    f"Connection {self._conn_id!r}: what is left of its budget is not known, as GENAI_STORAGE cannot "
                    f"be read: {shown_text(error)}"
                ) from None
            if spent >= limit.usd or spent + next_usd > limit.usd:
                why = "is used up" if spent >= limit.usd else f"is too small for the next {shown_usd(next_usd)}"
                raise AirflowFailException(
                    f"Connection {self._conn_id!r}: its budget for the {limit.what} {why}: {shown_usd(spent)} "
                    f"of {shown_usd(limit.usd)} are spent. {limit.advice} The page GenAI shows what they were spent on."
                )
            if spent >= limit.usd * self._budgets.warn_at and limit.what not in self._warned:
                self._warned.add(limit.what)
                used = f"{shown_usd(spent)} of {shown_usd(limit.usd)}"
                log.warning("Connection %r: budget for the %s: %s are spent.", self._conn_id, limit.what, used)
        self._looked_at = time.monotonic()

    def _limits(self) -> list[Limit]:
        return [*periods(self._conn_id, self._budgets, datetime.now(UTC)), *self._of_task]


def count_job(conn_id: str, budgets: Budgets, job_id: str, started: datetime, usd: float, *, is_final: bool) -> None:
    """Count a paid job of the current run: its estimate, and later its cost instead.

    :raises OSError: the storage cannot be written; count the job again.
    """
    for limit in (*periods(conn_id, budgets, started), *_of_task(conn_id, budgets.run_usd, None)):
        limit.total.put(fingerprint(job_id), usd, version=2 if is_final else 1)


def _of_task(conn_id: str, run_usd: float | None, task_usd: float | None) -> list[Limit]:
    """Return the limits of the current run and task."""
    context = task_context()
    if context is None:
        return []
    ti, folder, limits = context["ti"], (FOLDER, name_on_storage(conn_id)), []
    run = fingerprint(ti.dag_id, ti.run_id)
    if run_usd:
        advice = "Raise run_usd in the budgets of the connection's extra."
        limits.append(Limit(f"run {ti.run_id}", run_usd, advice, SharedTotal((*folder, f"run~{run}"))))
    if task_usd:
        task = fingerprint(run, ti.task_id, ti.map_index)
        limits.append(
            Limit(f"task {ti.task_id}", task_usd, "Raise its budget_usd.", SharedTotal((*folder, f"task~{task}")))
        )
    return limits
