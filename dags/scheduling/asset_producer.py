"""
### Asset producer: keeps the knowledge base fresh, and tells everybody who waits for it

Every hour it embeds the documents that changed, then updates the asset `knowledge_base`. DAGs scheduled on that asset
run because of it. **Without a change there is no update**: the task is skipped, and nobody is woken for nothing.

The update carries numbers and the URL of a file, not the data: an event is a row in Airflow's database. What was
published is remembered only after the update is stored, so a crash in between repeats an update and never loses one.
"""

from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import dag, get_current_context, task

from include.common.assets import KNOWLEDGE_BASE
from include.common.task_defaults import DEFAULT_ARGS, LLM_POOL


@dag(
    dag_display_name="Asset producer: refresh the knowledge base",
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
        import json

        from include.common.storage import artifact_path, write_artifact
        from include.rag.changes import changes_since_last_update
        from include.rag.ingestion import refresh_index
        from include.rag.search import COLLECTION, indexed_documents

        chunks = refresh_index(COLLECTION)["chunks"]
        changes = changes_since_last_update(indexed_documents(COLLECTION))
        numbers = {kind: len(changes[kind]) for kind in ("added", "changed", "removed")}
        if not any(numbers.values()):
            raise AirflowSkipException("No document has changed since the last update of the asset.")
        context = get_current_context()
        path = artifact_path("knowledge_base", context["run_id"], "changes.json")
        write_artifact(path, json.dumps(changes, indent=2))
        context["outlet_events"][KNOWLEDGE_BASE].extra = {**numbers, "chunks": chunks, "changes": str(path)}
        told = ", ".join(f"{number} {kind}" for kind, number in numbers.items())
        return {"changes": str(path), "result": f"documents: {told}; {chunks} chunks"}

    @task
    def remember_update(update: dict):
        import json

        from include.common.storage import stored_file
        from include.rag.changes import remember

        remember(json.loads(stored_file(update["changes"]).read_bytes()))

    remember_update(refresh_knowledge_base())


asset_producer()
