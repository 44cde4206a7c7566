"""Canary: in a share of the runs of a DAG, a candidate connection is asked first.

`{"canary": {"conn_id": "candidate", "share": 0.1}}` in a connection's extra. A hash of connection, DAG and run selects
these runs, so it is the same for all tasks and tries of a run. If the candidate gives no answer, the connection itself
is asked, and then its fallbacks. A canary of a candidate or of a fallback is not followed.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from include.ai.connection import ModelSource
from include.common.connection_extra import read_setting, setting_error
from include.common.task_context import task_context

KEY = "canary"


class Canary(BaseModel):
    """The candidate `conn_id`, and the share of runs that ask it: 0 for none, 1 for all."""

    model_config = ConfigDict(extra="forbid", strict=True)

    conn_id: Annotated[str, Field(min_length=1)]
    share: Annotated[float, Field(ge=0, le=1)]

    def takes(self, conn_id: str, dag_id: str, run_id: str) -> bool:
        """Return whether a run asks the candidate instead of `conn_id`. A larger share has all runs of a smaller."""
        digest = sha256(json.dumps([conn_id, dag_id, run_id]).encode()).digest()
        return int.from_bytes(digest[:8]) < self.share * 2**64


def read_canary(source: ModelSource) -> Canary | None:
    """Read a connection's canary; None if it has none.

    :raises AirflowFailException: it is not valid.
    """
    canary: Canary | None = read_setting(source.conn_id, source.layer_args, KEY, Canary)
    if canary and canary.conn_id == source.conn_id:
        raise setting_error(source.conn_id, "canary.conn_id: it must be another connection")
    return canary


def candidate(source: ModelSource) -> str | None:
    """Return the connection that the current run asks first; None for the connection itself.

    :raises AirflowFailException: the connection's canary is not valid.
    """
    canary, context = read_canary(source), task_context()
    if canary and context and canary.takes(source.conn_id, context["ti"].dag_id, context["ti"].run_id):
        return canary.conn_id
    return None
