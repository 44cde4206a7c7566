"""
### Forget answers: stored answers of models are deleted when they are old, or because somebody asks for it

So that a retry does not pay twice, each answer of a model lies on object storage. This DAG deletes, once a day, those
that are older than 30 days. Started by hand it deletes, at once, those of a DAG, of a run, or of a key.
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
        "key": text("Key", "Delete the answers whose file's name begins so."),
        "days": Param(
            None,
            type=["null", "number"],
            **limits(minimum=0, maximum=36500),
            title="Days",
            description=f"Delete only what is older. If all fields are empty: {KEPT_DAYS} days.",
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
