"""A batch belongs to one run at a time: a second run would pay again for the rows in flight.

The last of the numbered entries in the batch's folder names its run; the storage creates each entry only once. The
claim ends when Airflow says that the run has ended. No worker's clock decides it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk.exceptions import AirflowRuntimeError

from include.common.exclusive import create_file, names_in
from include.common.storage import read_artifact

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

ACTIVE = ("queued", "running")


def claim(folder: ObjectStoragePath, ti: Any) -> None:
    """Claim the batch in this folder for the task's run.

    :raises AirflowFailException: it belongs to another run, which has not ended.
    """
    mine = [ti.dag_id, ti.run_id]
    entries = folder / "runs"
    while True:
        last = max((int(name) for name in names_in(entries) if name.isdigit()), default=0)
        owner = json.loads(read_artifact(entries / f"{last:06}")) if last else None
        if owner == mine:
            return
        if owner and _state(ti, *owner) in ACTIVE:
            raise AirflowFailException(
                f"The run {owner[1]!r} of {owner[0]} is answering this batch, and both runs would pay for its rows. "
                "When it has ended, clear this task: answered rows are not paid again."
            )
        if create_file(entries / f"{last + 1:06}", json.dumps(mine).encode()):
            return


def _state(ti: Any, dag_id: str, run_id: str) -> str:
    """Return the state of a run; empty if this Airflow does not know the run, for example because it was deleted."""
    try:
        state: str = ti.get_dagrun_state(dag_id, run_id)  # or an enum that equals its text
        return state
    except AirflowRuntimeError as error:
        if (error.error.detail or {}).get("status_code") == 404:
            return ""
        raise
