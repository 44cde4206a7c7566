"""
### Forget answers: stored answers of models are deleted when they are old, or on request

Each answer of a model is kept on object storage, so that a retry does not pay twice. Once a day, this DAG deletes
those that are older than 30 days. Triggered by hand, it deletes those of a DAG, a run or a key at once.
"""

from datetime import UTC, datetime

from airflow.sdk import Param, dag, get_current_context, task

from include.ai.forget import forget
from include.common.params import limits
from include.common.task_defaults import DEFAULT_ARGS

KEPT_DAYS = 30


def text(title: str, description: str) -> Param:
    return Param(
        None, type=["null", "string"], **limits(minLength=1, maxLength=250), title=title, description=description
    )


@dag(
    description="Deletes stored answers of models: the old ones every day, or those of a DAG, run or key.",
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    tags=["genai", "operations"],
    doc_md=__doc__,
    params={
        "dag_id": text("DAG", "Delete the answers that this DAG has paid."),
        "run_id": text("Run", "Delete the answers that the runs of this id have paid."),
        "key": text("Key", "Delete the answers whose file name starts with this."),
        "days": Param(
            None,
            type=["null", "number"],
            **limits(minimum=0, maximum=36500),
            title="Days",
            description=f"Delete only answers that are older. If all fields are empty: {KEPT_DAYS} days.",
        ),
    },
)
def forget_answers():
    @task
    def delete():
        params = get_current_context()["params"]
        which = {name: params[name] for name in ("dag_id", "run_id", "key", "days")}
        if all(value is None for value in which.values()):
            which["days"] = KEPT_DAYS
        return {"result": f"{forget(**which)} stored answers deleted"}

    delete()


forget_answers()
