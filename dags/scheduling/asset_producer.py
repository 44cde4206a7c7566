"""
### Asset producer: keep the knowledge base fresh, and start every DAG that waits for it

Every hour it embeds the documents that changed, then updates the asset *knowledge_base*, which starts the DAGs that
are scheduled on it. **Without a change there is no update**: the task is skipped, and no DAG is started for nothing.

The update has numbers and the URL of a file, not the data: an event is a row in Airflow's database. What was published
is remembered only after the update is stored, so a crash in between repeats an update and never loses one.
"""

import json

from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import dag, get_current_context, task

from include.common.assets import KNOWLEDGE_BASE
from include.common.results import publish
from include.common.stored_files import stored_file
from include.common.task_defaults import DEFAULT_ARGS, LLM_POOL
from include.rag import updates


@dag(
    description="Embeds changed documents every hour, and updates the asset knowledge_base if there are any.",
    schedule="@hourly",
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    tags=["genai", "scheduling", "asset", "embeddings"],
    doc_md=__doc__,
)
def asset_producer():
    @task(outlets=[KNOWLEDGE_BASE], pool=LLM_POOL)
    def refresh_knowledge_base():
        # Here, as these import the AI SDK, which costs seconds at each parse of a DAG that calls no language model.
        from include.rag.ingestion import refresh_index
        from include.rag.search import indexed_documents

        chunks = refresh_index()["chunks"]
        update = updates.update_of(indexed_documents())
        numbers = {kind: len(update[kind]) for kind in ("added", "changed", "removed")}
        if not any(numbers.values()):
            raise AirflowSkipException("No document has changed since the last update of the asset.")
        context = get_current_context()
        changes = publish("changes.json", update)
        context["outlet_events"][KNOWLEDGE_BASE].extra = {**numbers, "chunks": chunks, "changes": changes}
        counted = ", ".join(f"{number} {kind}" for kind, number in numbers.items())
        return {"changes": changes, "result": f"documents: {counted}; {chunks} chunks"}

    @task
    def remember_update(refreshed: dict):
        updates.remember_update(json.loads(stored_file(refreshed["changes"]).read_bytes()))

    remember_update(refresh_knowledge_base())


asset_producer()
