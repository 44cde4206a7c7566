"""The routes of the page GenAI, and who may see what.

Everything needs a login, and the right to read the DAG. Files are found by run and name in the list of the run's own
files; no request holds a path or a URL.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails, DagAccessEntity
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancehistory import TaskInstanceHistory
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy import func, select

from include.common.prices import shown_usd
from include.common.shown import shown_text
from include.page.budgets import shown_budgets
from include.page.downloads import send_file
from include.page.previews import IMAGES, previews
from include.page.quality import plots
from include.page.results import read_results
from include.page.run_files import files_of
from include.spend.reading import Reading, only, read_days
from include.spend.scores import read_scores
from include.spend.sums import overview

try:
    from include.page.trace_link import trace_link
except ImportError:  # a copied pattern may lack it
    trace_link = None  # type: ignore[assignment]

FOLDER = Path(__file__).parent
LONGEST_RANGE_DAYS = 92
SHOWN_DAYS = 7
RUNS_OF_A_DAG = 50
# What the browser may load for a page: its own style sheet, script and pictures.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; frame-ancestors 'self'; "
    "form-action 'self'; base-uri 'none'"
)
# The same for a file of a run that is opened by itself: nothing.
FILE_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'"

T = TypeVar("T")

app = FastAPI(title="GenAI", docs_url=None, redoc_url=None, openapi_url=None)
app.mount("/static", StaticFiles(directory=FOLDER / "static"), name="static")

templates = Environment(loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined)
templates.filters |= {
    "usd": shown_usd,
    "number": "{:,.0f}".format,
    "moment": lambda moment: f"{moment:%Y-%m-%d %H:%M:%S}" if moment else "",
}


def readable_dags(user: GetUserDep) -> set[str]:
    """Return the ids of the DAGs that the user may read."""
    return get_auth_manager().get_authorized_dag_ids(user=user, method="GET")


ReadableDags = Annotated[set[str], Depends(readable_dags)]
may_read_dag = Depends(requires_access_dag("GET", DagAccessEntity.XCOM))
OptionalDay = Annotated[date | None, Query()]


@app.get("/", response_class=HTMLResponse)
def spend(
    request: Request,
    user: GetUserDep,
    dag_ids: ReadableDags,
    first: OptionalDay = None,
    last: OptionalDay = None,
    dag: str = "",
    model: str = "",
    prompt: str = "",
) -> Response:
    """Show what was spent in some days: by all DAGs, or by one DAG, model or prompt."""
    last = last or datetime.now(UTC).date()
    first = first or last - timedelta(SHOWN_DAYS - 1)
    if first > last or (last - first).days >= LONGEST_RANGE_DAYS:
        raise HTTPException(422, f"From first to last it must be 1 to {LONGEST_RANGE_DAYS} days.")
    filters = {"model": model, "prompt": prompt}
    chosen = {name: {value} for name, value in filters.items() if value}
    chosen_dags = dag_ids & {dag} if dag else dag_ids
    reading = _read(first, last, dag_id=chosen_dags, **chosen)
    found = overview(reading, first, last)
    conn_ids = reading.rows["conn_id"].unique().to_pylist()
    may_read = partial(get_auth_manager().is_authorized_connection, method="GET", user=user)
    budgets = shown_budgets(each for each in conn_ids if may_read(details=ConnectionDetails(conn_id=each)))
    shown = {"budgets": budgets, "dag": dag, "dag_ids": sorted(dag_ids), **filters}
    scores = _readable(read_scores, first, last, chosen_dags)
    return _page(request, "spend.html", found=found, plots=plots(scores.scores), bad_scores=scores.unreadable, **shown)


@app.get("/dags/{dag_id}", response_class=HTMLResponse, dependencies=[may_read_dag])
def runs_of_dag(request: Request, dag_id: str, session: SessionDep) -> Response:
    """Show the newest runs of a DAG: what came out, and what it cost."""
    newest = select(DagRun).where(DagRun.dag_id == dag_id).order_by(DagRun.run_after.desc()).limit(RUNS_OF_A_DAG)
    runs = session.scalars(newest).all()
    today = datetime.now(UTC).date()
    oldest = min((run.run_after.date() for run in runs), default=today)
    first = max(oldest, today - timedelta(LONGEST_RANGE_DAYS - 1))
    run_ids = [str(run.run_id) for run in runs]
    spent = {each.key[1]: each for each in overview(_read(first, today, dag_id={dag_id}), first, today).runs}
    results = read_results(session, dag_id, run_ids)
    scores = _readable(read_scores, first, today, {dag_id}).scores
    return _page(request, "dag.html", dag_id=dag_id, runs=runs, results=results, spent=spent, plots=plots(scores))


@app.get("/runs/{dag_id}/{run_id:path}", response_class=HTMLResponse, dependencies=[may_read_dag])
def run(
    request: Request, dag_id: str, run_id: str, session: SessionDep, task: str = "", map_index: str = ""
) -> Response:
    """Show what came out of a run, and its model calls; or the calls of one of its tasks only."""
    dag_run = _run(session, dag_id, run_id)
    last = (dag_run.end_date or datetime.now(UTC)).date()
    first = max(_first_day(session, dag_run) or last, last - timedelta(LONGEST_RANGE_DAYS))
    reading = _read(first, last, dag_id={dag_id}, run_id={run_id}, **({"task_id": {task}} if task else {}))
    lines = reading.rows.sort_by("started").to_pylist()
    if map_index.isdecimal():
        lines = [line for line in lines if str(line["map_index"]) == map_index]
    if task:
        return _page(request, "task.html", run=dag_run, task=task, lines=lines)
    return _page(
        request,
        "run.html",
        run=dag_run,
        trace=trace_link(dag_run) if callable(trace_link) else "",
        result=read_results(session, dag_id, [run_id]).get(run_id, ""),
        previews=previews(_readable(files_of, dag_id, run_id)),
        found=overview(reading, first, last),
        lines=lines,
    )


@app.get("/files/{dag_id}/{name:path}", dependencies=[may_read_dag])
def file(
    request: Request, dag_id: str, name: str, run_id: str, session: SessionDep, download: bool = False
) -> Response:
    """Send a file of a run: pictures as such, everything else as a download."""
    _run(session, dag_id, run_id)
    files = _readable(files_of, dag_id, run_id)
    if name not in files:
        raise HTTPException(404, "The run has no such file.")
    path = files[name]
    kind = IMAGES.get(path.suffix)
    headers = {"Content-Security-Policy": FILE_POLICY, "X-Content-Type-Options": "nosniff"}
    if download or not kind:
        headers["Content-Disposition"] = f'attachment; filename="{re.sub(r"[^A-Za-z0-9._-]+", "-", path.name)}"'
    return send_file(path, kind or "application/octet-stream", headers, request.headers)


def _page(request: Request, template: str, **values: Any) -> Response:
    root = request.scope.get("root_path", "")
    html = templates.get_template(template).render(root=root, airflow=root.removesuffix("/genai"), **values)
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}
    return HTMLResponse(html, headers=headers)


def _read(first: date, last: date, **wanted: set[str]) -> Reading:
    """Read the ledger's rows with these values."""
    reading = _readable(read_days, first, last)
    return reading._replace(rows=only(reading.rows, **wanted))


def _readable(read: Callable[..., T], *given: Any) -> T:
    """Read the storage; if it cannot be read, the answer says so.

    :raises HTTPException: it cannot be read.
    """
    try:
        return read(*given)
    except Exception as error:
        raise HTTPException(503, f"The API server cannot read GENAI_STORAGE: {shown_text(error)}") from None


def _run(session: Any, dag_id: str, run_id: str) -> DagRun:
    found = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
    if found is None:
        raise HTTPException(404, "There is no such run.")
    return found  # type: ignore[no-any-return]


def _first_day(session: Any, run: DagRun) -> date | None:
    """Return the day on which the first task of a run began. A run that is cleared has a new start of its own."""
    starts = [
        session.scalar(select(func.min(table.start_date)).where(table.dag_id == run.dag_id, table.run_id == run.run_id))
        for table in (TaskInstance, TaskInstanceHistory)
    ]
    return min((start.date() for start in starts if start), default=None)
