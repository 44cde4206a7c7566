"""
### Spend report: what model calls cost yesterday, as a report and as an asset

Every attempt of a task that calls a model leaves a small record on object storage (the ledger). This DAG puts the
records of a day into one Parquet file, writes a report with charts, and updates the asset *daily_spend*. Its event
carries the totals, so that your own alert can wait for it. Running a day again counts nothing twice.
"""

from datetime import UTC, date, datetime, timedelta

from airflow.sdk import Metadata, Param, dag, get_current_context, task

from include.common.assets import DAILY_SPEND
from include.common.params import limits
from include.common.results import run_folder
from include.common.task_defaults import DEFAULT_ARGS
from include.spend.reading import read_days, roll_up
from include.spend.report import DAYS_BEFORE, write_report


@dag(
    description="Adds up what model calls cost in a day: a Parquet file, a report, and an asset with the totals.",
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    tags=["genai", "operations"],
    doc_md=__doc__,
    params={
        "day": Param(
            None,
            type=["null", "string"],
            format="date",
            **limits(maxLength=10),
            title="Day",
            description="The day to report on, in UTC. If empty: the day before the run.",
        ),
    },
)
def spend_report():
    @task
    def roll_up_day():
        context = get_current_context()
        day = context["params"]["day"] or (context["dag_run"].run_after.astimezone(UTC) - timedelta(days=1)).date()
        for days_before in range(DAYS_BEFORE + 1):  # a job that began then may have ended since
            roll_up(date.fromisoformat(str(day)) - timedelta(days=days_before))
        return str(day)

    @task(outlets=[DAILY_SPEND])
    def report(day: str):
        last = date.fromisoformat(day)
        totals = write_report(last, read_days(last - timedelta(DAYS_BEFORE), last))
        yield Metadata(DAILY_SPEND, totals)
        return {
            "artifacts": str(run_folder()),
            "result": f"{day}: ${totals['cost_usd']:,.2f} for {totals['calls']:,} calls"
            + (f", {totals['unpriced_calls']:,} of them without a known price" if totals["unpriced_calls"] else ""),
        }

    report(roll_up_day())


spend_report()
