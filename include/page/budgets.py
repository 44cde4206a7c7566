"""The budgets of connections, as the page shows them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from airflow.models.connection import Connection
from airflow.providers.common.compat.sdk import AirflowException

from include.common.shown import shown_text
from include.spend.budgets import periods, read_budgets


class ShownBudget(NamedTuple):
    """A budget and what is spent of it, in US dollars; `problem` says why that is not known."""

    conn_id: str
    what: str
    spent: float = 0.0
    usd: float = 0.0
    is_near: bool = False
    problem: str = ""

    @property
    def left(self) -> float:
        """What may still be spent."""
        return max(0.0, self.usd - self.spent)


def shown_budgets(conn_ids: Iterable[str]) -> list[ShownBudget]:
    """Return the budgets of these connections for the day and the month, with what is spent of them."""
    found = []
    for conn_id in sorted(conn_ids):
        try:
            budgets = read_budgets(conn_id, Connection.get_connection_from_secrets(conn_id).extra_dejson)
            if budgets is None:
                continue
            for limit in periods(conn_id, budgets, datetime.now(UTC)):
                spent = limit.total.read()
                is_near = spent >= limit.usd * budgets.warn_at
                found.append(ShownBudget(conn_id, limit.what, spent, limit.usd, is_near))
        except (AirflowException, OSError) as error:
            found.append(ShownBudget(conn_id, "", problem=shown_text(error)))
    return found
