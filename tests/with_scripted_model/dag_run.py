"""Runs the DAG of a file without a scheduler, and writes the outcome as JSON: `dag_run.py FILE CONF LEFT`.

CONF is JSON, too; with `null` the file is only imported.

It is a process of its own, so that Airflow's settings are those of conftest.py, even if other tests import Airflow.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.models.xcom import XComModel
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk.execution_time import supervisor
from airflow.utils.db import initdb
from airflow.utils.session import create_session

try:
    from airflow.dag_processing import dagbag
except ImportError:  # Airflow 3.1
    from airflow.models import dagbag  # type: ignore[no-redef]


def approve(operator: HITLOperator, context: Any) -> dict[str, Any]:
    """Return what HITLOperator returns when a person has chosen the first option and changed nothing."""
    person = {"id": "1", "name": "a reviewer of the tests"}
    answer = {"chosen_options": operator.options[:1], "params_input": {}, "responded_by_user": person}
    return answer | {"responded_at": datetime.now(UTC).isoformat()}


def name_of(row: Any) -> str:
    return row.task_id if row.map_index < 0 else f"{row.task_id}[{row.map_index}]"


def main(file: str, conf: str, left: str) -> None:
    if not (Path(os.environ["AIRFLOW_HOME"]) / "airflow.db").exists():
        initdb()
        DagBundlesManager().sync_bundles_to_db()
    bag = dagbag.DagBag(file)
    if bag.import_errors or not bag.dags:
        sys.exit("\n".join(bag.import_errors.values()) or f"There is no DAG in {file}.")
    found = {"state": "imported", "states": {}, "returned": {}} if conf == "null" else run(bag, json.loads(conf))
    Path(left).write_text(json.dumps(found, default=str))


def run(bag: Any, conf: dict[str, Any]) -> dict[str, Any]:
    (dag,) = bag.dags.values()
    dagbag.sync_bag_to_db(bag, "dags-folder", None)
    for task in dag.tasks:
        if task.is_mapped:
            task.partial_kwargs["retries"] = 0
        else:
            task.retries = 0
    HITLOperator.execute = approve
    # Airflow would build it again for each task, which takes a second.
    supervisor.in_process_api_server = functools.cache(supervisor.in_process_api_server)
    run = dag.test(run_conf=conf)
    with create_session() as session:
        returned = session.query(XComModel).filter_by(dag_id=dag.dag_id, run_id=run.run_id, key="return_value")
        return {
            "state": str(run.state),
            "states": {name_of(task): str(task.state) for task in run.get_task_instances()},
            "returned": {name_of(row): XComModel.deserialize_value(row) for row in returned},
        }


if __name__ == "__main__":
    main(*sys.argv[1:])
