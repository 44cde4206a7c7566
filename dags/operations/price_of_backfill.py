"""
### Price of a backfill: what it would cost, before any model is asked

Asks no model and starts no run. For the days from *first* to *last* it counts the runs of a DAG that do not exist yet,
and prices them at the mean of the DAG's runs of the last 30 days in the ledger. For a DAG over a file of rows, such as
*batch_inference_at_scale*, leave both days empty: it counts the rows that a *batch* has not answered yet, with their
tokens and the model's price.
"""

from datetime import date

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import Param, dag, get_current_context, task

from include.batch.price import price_of_batch
from include.common.markdown import as_markdown_line
from include.common.params import limits
from include.common.results import publish, report, run_folder
from include.common.task_defaults import DEFAULT_ARGS
from include.spend.price import backfill_dates, dag_file, price_of_runs, runs_there


def day(title: str) -> Param:
    return Param(
        None,
        type=["null", "string"],
        format="date",
        **limits(maxLength=10),
        title=title,
        description="Of the backfill, in UTC. Leave both empty for the price of a file of rows.",
    )


@dag(
    description="Says what a backfill or a file of rows would cost, before any model is asked.",
    schedule=None,
    default_args=DEFAULT_ARGS,
    tags=["genai", "operations"],
    doc_md=__doc__,
    params={
        "dag_id": Param(
            "batch_inference_at_scale",
            type="string",
            **limits(minLength=1, maxLength=250),
            title="DAG",
            description="The id of the DAG, which must also be the name of its file.",
        ),
        "first": day("First day"),
        "last": day("Last day"),
        "input": Param(
            None,
            type=["null", "string"],
            **limits(maxLength=2000),
            title="Input",
            description="URL of the rows on the project's storage; empty: the DAG's own sample.",
        ),
        "text_column": Param(
            "review",
            type="string",
            **limits(minLength=1, maxLength=200),
            title="Text column",
            description="The column that the model would get.",
        ),
        "id_column": Param(
            "review_id",
            type=["null", "string"],
            **limits(maxLength=200),
            title="Id column",
            description="The same as in the batch: a row with another id counts as another row.",
        ),
        "batch": Param(
            None,
            type=["null", "string"],
            **limits(maxLength=200),
            title="Batch",
            description="The batch that the rows would belong to: rows that it has answered cost nothing.",
        ),
    },
)
def price_of_backfill():
    @task
    def price():
        context = get_current_context()
        params = context["params"]
        dag_id, first, last = params["dag_id"], params["first"], params["last"]
        if first and last:
            days = date.fromisoformat(first), date.fromisoformat(last)
            dates = backfill_dates(dag_id, *days)
            said = price_of_runs(dag_id, len(dates) - runs_there(context["ti"], dag_id, dates), *days)
        elif first or last:
            raise AirflowFailException("Set both days, first and last, or neither.")
        else:
            said = price_of_batch(dag_file(dag_id), params)
        lines = [as_markdown_line(line) for line in said.split("\n")]
        publish("report.md", report(f"Price of {dag_id}", *lines))
        return {"artifacts": str(run_folder()), "result": said}

    price()


price_of_backfill()
