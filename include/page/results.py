"""What runs say their result is: the `result` in what their last tasks returned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow.models.xcom import XComModel
from sqlalchemy import select

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


def read_results(session: Session, dag_id: str, run_ids: Sequence[str]) -> dict[str, str]:
    """Return the results of runs, by run id. Values that an XCom backend keeps elsewhere are left out."""
    returned = select(XComModel).where(
        XComModel.dag_id == dag_id,
        XComModel.run_id.in_(run_ids),
        XComModel.key == "return_value",
        XComModel.map_index == -1,
    )
    found: dict[str, list[str]] = defaultdict(list)
    for entry in session.scalars(returned):
        value = XComModel.deserialize_value(entry)
        if isinstance(value, dict) and isinstance(value.get("result"), str):
            found[str(entry.run_id)].append(value["result"])
    return {run_id: "\n\n".join(texts) for run_id, texts in found.items()}
