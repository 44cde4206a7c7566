"""
### Asset or time: check retrieval when the knowledge base changes, and every morning

*AssetOrTimeSchedule* runs the DAG at 06:00 UTC **and** whenever *knowledge_base* is updated: a bad document is noticed
at once, and a change to the vector store by someone else by the next morning. The check asks the index questions with
known answers; no language model is called. The task reports which of the two started it.
"""

from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import dag, get_current_context, task
from airflow.timetables.assets import AssetOrTimeSchedule
from airflow.timetables.trigger import CronTriggerTimetable

from include.common.asset_events import triggering_events
from include.common.assets import KNOWLEDGE_BASE
from include.common.results import publish
from include.common.task_defaults import DEFAULT_ARGS, LLM_POOL
from include.rag.stores.base import SearchQuery
from include.sample.data import questions

PASSAGES = 3  # the right document must be among this many


@dag(
    description="Runs after an update or at 06:00 UTC: checks retrieval.",
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable("0 6 * * *", timezone="UTC"),
        assets=KNOWLEDGE_BASE,
    ),
    catchup=False,
    default_args=DEFAULT_ARGS,
    tags=["genai", "scheduling", "asset", "embeddings"],
    doc_md=__doc__,
)
def asset_or_time():
    @task(pool=LLM_POOL)
    def check_retrieval():
        # Here, as this imports the AI SDK, which costs seconds at each parse of a DAG that calls no language model.
        from include.rag.search import indexed_documents, search

        context = get_current_context()
        updates = triggering_events(KNOWLEDGE_BASE)
        by_hand = "a person" if context["dag_run"].run_type == "manual" else "the time"
        because = f"{len(updates)} update(s) of the knowledge base" if updates else by_hand
        if not indexed_documents():
            raise AirflowSkipException("The index is empty: run asset_producer first.")
        asked = questions()
        hits = search([SearchQuery(each["question"], PASSAGES) for each in asked])
        missed = [
            each
            for each, found in zip(asked, hits, strict=True)
            if each["document"] not in {hit.source for hit in found}
        ]
        return {
            "missed": publish("missed.json", missed),
            "because": because,
            "result": f"because of {because}: {len(asked) - len(missed)} of {len(asked)} questions find their document",
        }

    check_retrieval()


asset_or_time()
