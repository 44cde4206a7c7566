"""
### Asset or time: check retrieval when the knowledge base changes, and every morning

`AssetOrTimeSchedule` runs the DAG at 06:00 UTC **and** whenever `knowledge_base` is updated: a bad document shows at
once, and a vector store that was changed by somebody else shows by the next morning. The check asks the index
questions with known answers; no language model is called. The task tells which of the two made it run.
"""

from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import Param, dag, get_current_context, task
from airflow.timetables.assets import AssetOrTimeSchedule
from airflow.timetables.trigger import CronTriggerTimetable

from include.common.assets import KNOWLEDGE_BASE
from include.common.task_defaults import DEFAULT_ARGS, LLM_POOL


@dag(
    dag_display_name="Asset or time: check retrieval",
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable("0 6 * * *", timezone="UTC"),
        assets=KNOWLEDGE_BASE,
    ),
    catchup=False,
    default_args=DEFAULT_ARGS,
    tags=["genai", "scheduling", "asset", "embeddings"],
    doc_md=__doc__,
    params={
        "k": Param(
            3,
            type="integer",
            minimum=1,
            maximum=10,
            title="Passages",
            description="The right document must be among this many passages.",
        ),
    },
)
def asset_or_time():
    @task(pool=LLM_POOL)
    def check_retrieval():
        import json

        from include.common.asset_events import triggering_events
        from include.common.storage import artifact_path, write_artifact
        from include.rag.search import COLLECTION, check_retrieval
        from include.sample.data import questions

        context = get_current_context()
        updates = triggering_events(KNOWLEDGE_BASE)
        by_hand = "a person" if context["dag_run"].run_type == "manual" else "the time"
        because = f"{len(updates)} update(s) of the knowledge base" if updates else by_hand
        missed = check_retrieval(COLLECTION, questions(), context["params"]["k"])
        if missed is None:
            raise AirflowSkipException("The index is empty: run asset_producer first.")
        path = artifact_path("retrieval_checks", context["run_id"], "missed.json")
        write_artifact(path, json.dumps(missed, indent=2))
        found = len(questions()) - len(missed)
        return {
            "missed": str(path),
            "because": because,
            "result": f"because of {because}: {found} of {len(questions())} questions find their document",
        }

    check_retrieval()


asset_or_time()
