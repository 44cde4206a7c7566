"""Runs DAGs, each in the Astro project that it was copied to, and writes to `left.json` there what its run left behind.

A process of its own, as `include` must be the project's and not this one's: `python -P tests/copied_projects.py WORK`,
where WORK is a JSON list of chains, `[database, [[folder, DAG id, conf, connections], ...]]`. Chains run side by side,
and the DAGs of a chain in turn on its Airflow database, so that the assets which one updates are there for the next.
Each DAG has a child, forked when what all share has been imported, which takes most of the time. It knows only the
connections that it is given. Its output goes to `log` in the folder.

Two things are done here that `dag.test()` leaves to others. The events of a DAG that waits for messages are made by its
own watcher's trigger, from the broker. What a DAG asks people is answered as the UI's server does it.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import airflow.sdk
import airflow.settings
import httpx
import sqlalchemy.orm
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.core_api.datamodels.hitl import UpdateHITLDetailPayload
from airflow.api_fastapi.core_api.routes.public.hitl import update_hitl_detail
from airflow.api_fastapi.execution_api.routes.hitl import get_hitl_detail
from airflow.models.asset import AssetEvent, AssetModel, association_table
from airflow.models.dagrun import DagRun
from airflow.models.hitl import HITLDetail
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.providers.standard.triggers import hitl as hitl_trigger
from airflow.sdk import Asset
from airflow.sdk.api.datamodels._generated import API_VERSION
from airflow.sdk.execution_time import supervisor
from airflow.utils.session import create_session

try:
    from airflow.dag_processing import dagbag
except ImportError:  # Airflow 3.1
    from airflow.models import dagbag  # type: ignore[no-redef]

EVENT_TIMEOUT_S = 30.0
# What many DAGs import when they run. (Not lancedb, but what it imports: it starts a thread, which cannot be forked.)
SLOW_IMPORTS = [
    "airflow.providers.amazon.aws.fs.s3",
    "lance_namespace",
    "matplotlib.figure",
    "openai",
    "pandas",
    "pyarrow.parquet",
    "pydantic_ai.embeddings",
    "pydantic_ai.models.openai",
]

# Models that are not to answer as the others, which call a tool as often as they are given one.
MODELS = {"refund_agent": "openai-chat:answers-at-once"}


def run_in(folder: Path, dag_id: str, conf: dict[str, Any], connections: list[str]) -> None:
    """Run the DAG without a retry, and write `left.json`: the run's state, and the XComs by task."""
    for name in [name for name in os.environ if name.startswith("AIRFLOW_CONN_")]:
        if name.removeprefix("AIRFLOW_CONN_").lower() not in connections:
            del os.environ[name]
    if dag_id in MODELS:
        connection = json.loads(os.environ["AIRFLOW_CONN_PYDANTICAI_DEFAULT"])
        connection["extra"]["model"] = MODELS[dag_id]
        os.environ["AIRFLOW_CONN_PYDANTICAI_DEFAULT"] = json.dumps(connection)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(folder / "dags")
    bag = dagbag.DagBag(f"{folder}/dags/{dag_id}.py")
    assert not bag.import_errors, bag.import_errors
    dagbag.sync_bag_to_db(bag, "dags-folder", None)
    dag = bag.dags[dag_id]
    for task in dag.tasks:
        if task.is_mapped:
            task.partial_kwargs["retries"] = 0
        else:
            task.retries = 0
    consume_events(asyncio.run(watched_events(dag)))
    threading.Thread(target=approve_all, args=(dag_id,), daemon=True).start()
    hitl_trigger.get_hitl_detail_content_detail = answer_of
    run = dag.test(run_conf=conf)
    of_others = {
        name: module.__file__
        for name, module in sys.modules.items()
        if name.split(".")[0] in ("include", "dags", "local", "tests")
        and not str(module.__file__).startswith(str(folder))
    }
    assert not of_others, of_others
    (folder / "left.json").write_text(json.dumps({"state": str(run.state), "xcoms": xcoms(run)}))


def xcoms(run: Any) -> dict[str, Any]:
    """What the run's tasks returned; of a mapped task, what the last one did."""
    query = sqlalchemy.select(XComModel).where(
        XComModel.dag_id == run.dag_id, XComModel.run_id == run.run_id, XComModel.key == "return_value"
    )
    with create_session() as session:
        return {
            row.task_id: XComModel.deserialize_value(row)
            for row in session.scalars(query.order_by(XComModel.map_index))
        }


async def watched_events(dag: Any) -> list[tuple[str, dict[str, Any]]]:
    """For each watcher of the DAG's assets, the asset's name and what its next event says."""
    found = []
    for asset in assets_in(getattr(dag.timetable, "asset_condition", None)):
        for watcher in asset.watchers:
            event = await asyncio.wait_for(anext(watcher.trigger.run()), EVENT_TIMEOUT_S)
            found.append((asset.name, {"from_trigger": True, "payload": event.payload}))
    return found


def assets_in(condition: Any) -> list[Asset]:
    if isinstance(condition, Asset):
        return [condition]
    return [asset for part in getattr(condition, "objects", ()) for asset in assets_in(part)]


def consume_events(said: list[tuple[str, dict[str, Any]]]) -> None:
    """Store these events, and let the next DAG run be one that they have started."""
    with create_session() as session:
        ids = {asset.name: asset.id for asset in session.scalars(sqlalchemy.select(AssetModel))}
        events = [AssetEvent(asset_id=ids[name], extra=extra) for name, extra in said]
        session.add_all(events)
        session.flush()
        event_ids = [event.id for event in events]

    @sqlalchemy.event.listens_for(DagRun, "after_insert")
    def consume(_: Any, connection: Any, run: Any) -> None:
        for event_id in event_ids:
            connection.execute(association_table.insert().values(dag_run_id=run.id, event_id=event_id))


def approve_all(dag_id: str) -> None:
    """Answer all that the DAG asks people, as the UI's server does, when the task has begun to wait."""
    place = (TaskInstance.run_id, TaskInstance.task_id, TaskInstance.map_index)
    asked = sqlalchemy.select(*place).join(HITLDetail, HITLDetail.ti_id == TaskInstance.id)
    asked = asked.where(
        TaskInstance.dag_id == dag_id, HITLDetail.responded_at.is_(None), TaskInstance.state != "running"
    )
    approval = UpdateHITLDetailPayload(chosen_options=["Approve"], params_input={})
    person = SimpleAuthManagerUser(username="ada", role="admin")
    while True:
        time.sleep(0.2)
        with create_session() as session:
            for run_id, task_id, map_index in session.execute(asked).all():
                update_hitl_detail(dag_id, run_id, task_id, approval, person, session, map_index)


def answer_of(ti_id: Any) -> Any:
    """What Airflow 3.1's trigger asks its supervisor for, whose stand-in in `dag.test()` does not know of it."""
    with create_session() as session:
        return get_hitl_detail(ti_id, session)


def warm_up() -> None:
    """Do once what each child would take seconds for, leaving neither a thread nor a connection behind."""
    airflow.sdk.task.llm  # noqa: B018  (finds all providers)
    for module in SLOW_IMPORTS:
        importlib.import_module(module)
    sqlalchemy.orm.configure_mappers()
    supervisor.in_process_api_server = functools.cache(supervisor.in_process_api_server)
    api = supervisor.in_process_api_server()
    client = httpx.AsyncClient(transport=api.atransport, base_url="http://in-process")
    asyncio.run(client.get("/builds-all-routes", headers={"Airflow-API-Version": API_VERSION}))


def in_child(work: Callable[..., None], *arguments: Any) -> int:
    """Do this in a forked process, and return its id."""
    pid = os.fork()
    if pid == 0:
        try:
            work(*arguments)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return pid


def run_chain(database: str, runs: list[tuple[str, str, dict[str, Any], list[str]]]) -> None:
    os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = database
    airflow.settings.configure_vars()
    airflow.settings.configure_orm()
    for folder, *run in runs:
        os.waitpid(in_child(run_in, Path(folder), *run), 0)


def main() -> None:
    warm_up()
    for child in [in_child(run_chain, *chain) for chain in json.loads(sys.argv[1])]:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
