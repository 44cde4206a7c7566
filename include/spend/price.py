"""What a backfill of a DAG would cost, judging by its runs in the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from airflow.configuration import conf
from airflow.providers.common.compat.sdk import AirflowFailException

from include.common.prices import shown_usd
from include.common.shown import shown_text
from include.spend.reading import only, read_days

# The last days of the ledger, from which the cost of a run is estimated.
DAYS = 30
MOST_RUNS = 10_000
# They are sent in a URL.
DATES_AT_ONCE = 100


def dag_file(dag_id: str) -> Path:
    """Find the file with the DAG's name in the DAGs folder.

    :raises AirflowFailException: there is none.
    """
    folder = Path(conf.get_mandatory_value("core", "dags_folder"))
    found = sorted(path for path in folder.rglob("*.py") if path.stem == dag_id)
    if not found:
        raise AirflowFailException(f"There is no file {shown_text(dag_id)}.py below {folder}.")
    return found[0]


def backfill_dates(dag_id: str, first: date, last: date) -> list[datetime]:
    """Return the logical dates that a backfill of these days has, as Airflow computes them from the DAG's schedule.

    :raises AirflowFailException: the DAG cannot be loaded or backfilled, the days are reversed, or the dates too many.
    """
    if first > last:
        raise AirflowFailException(f"The first day, {first}, is after the last, {last}.")
    dag = _scheduled_dag(dag_id)
    if not dag.timetable.periodic:
        raise AirflowFailException(f"{dag_id!r} cannot be backfilled: its schedule has no dates.")
    start, end = datetime.combine(first, time.min, UTC), datetime.combine(last, time.max, UTC)
    infos = islice(dag.iter_dagrun_infos_between(start, end), MOST_RUNS + 1)
    now = datetime.now(UTC)
    dates = [info.logical_date for info in infos if info.data_interval and info.data_interval.end < now]
    if len(dates) > MOST_RUNS:
        raise AirflowFailException(f"{dag_id!r} has more than {MOST_RUNS} runs from {first} to {last}.")
    return dates


def runs_there(ti: Any, dag_id: str, dates: Sequence[datetime]) -> int:
    """Count the runs that exist for these logical dates.

    :param ti: the running task instance, which asks Airflow.
    """
    parts = [list(dates[start : start + DATES_AT_ONCE]) for start in range(0, len(dates), DATES_AT_ONCE)]
    return sum(ti.get_dr_count(dag_id, logical_dates=part) for part in parts)


def price_of_runs(dag_id: str, runs: int, first: date, last: date) -> str:
    """Return in words what this many runs would cost, by the mean of the DAG's runs of the last DAYS days.

    :raises OSError: the storage cannot be read.
    """
    today = datetime.now(UTC).date()
    lines = only(read_days(today - timedelta(DAYS), today).rows, dag_id={dag_id}).to_pylist()
    known = len({line["run_id"] for line in lines})
    said = f"{dag_id}: {runs} runs from {first} to {last} do not exist yet."
    if not known:
        return f"{said} What one costs is not known: the ledger has no run of the last {DAYS} days. Run the DAG once."
    calls, saved, unpriced = (sum(line[name] for line in lines) for name in ("calls", "reused", "unpriced"))
    tokens = sum(line["input_tokens"] + line["output_tokens"] for line in lines)
    share = runs / known
    cost = shown_usd(sum(line["cost_usd"] for line in lines) * share)
    return (
        f"{said}\nThey would take about {calls * share:,.0f} calls, {tokens * share:,.0f} tokens, {cost}"
        f"{', plus the calls whose price is not known' if unpriced else ''}: the mean of "
        f"the {known} runs of the last {DAYS} days, in which {saved:,} calls were answered from the storage."
    )


def _scheduled_dag(dag_id: str) -> Any:
    """Load a DAG in the form that Airflow's scheduler uses, which knows the dates of its schedule."""
    from airflow.serialization import serialized_objects

    try:
        from airflow.dag_processing.dagbag import DagBag  # type: ignore[import-not-found,unused-ignore]
    except ImportError:  # Airflow 3.1
        from airflow.models.dagbag import DagBag  # type: ignore[no-redef,unused-ignore]
    found = getattr(serialized_objects, "DagSerialization", None)
    serialized: Any = found or serialized_objects.SerializedDAG  # type: ignore[attr-defined,unused-ignore]  # Airflow 3.1

    bag = DagBag(str(dag_file(dag_id)))
    if dag_id not in bag.dags:
        errors = [error.strip().rpartition("\n")[2] for error in bag.import_errors.values()]
        raise AirflowFailException(f"Its file has no DAG {dag_id!r}. {shown_text(' '.join(errors))}")
    return serialized.from_dict(serialized.to_dict(bag.dags[dag_id]))
