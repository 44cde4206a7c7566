"""
### Canary report: is a candidate model as good as the usual one, in real runs?

With a canary in a connection's extra, a share of the runs of each DAG asks a candidate connection first. For every such
connection, this DAG compares both arms in the ledger: runs with a failure, calls, cost and time, and the scores that
runs recorded, with 95 % intervals. If there are too few runs to tell, the report says so.
"""

from datetime import UTC, datetime

from airflow.sdk import Param, dag, get_current_context, task

from include.common.params import limits
from include.common.task_defaults import DEFAULT_ARGS
from include.evaluation.canary import write_canary_report


@dag(
    description="Compares the runs that asked a canary's candidate with those that did not.",
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    tags=["genai", "operations", "evaluation"],
    doc_md=__doc__,
    params={
        "days": Param(
            7,
            type="integer",
            **limits(minimum=1, maximum=92),
            title="Days",
            description="How many days to compare (UTC), up to the day of the run.",
        ),
    },
)
def canary_report():
    @task
    def compare():
        context = get_current_context()
        return write_canary_report(context["dag_run"].run_after.astimezone(UTC).date(), context["params"]["days"])

    compare()


canary_report()
