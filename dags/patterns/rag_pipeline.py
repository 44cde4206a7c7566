"""
### RAG: answer a question from a knowledge base, and say where the answer stands

The first half keeps the vector store in step with the documents: only chunks that changed are embedded, in batches,
and what was removed is deleted. **A second run over unchanged documents embeds none of them.** After a change of the
embedding model, a new collection is filled and then takes the old one's place: vectors of two models never mix.

The second half answers the question from the retrieved passages alone. Where they hold no answer it says
"I don't know", and where nothing similar is found, no model is called at all. A citation of a passage that was not
retrieved is refused, and the model asked again. The store is that of the connection `vector_store_default`: LanceDB or
Weaviate. See docs/rag.md.
"""

from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import Param, dag, get_current_context, task

from include.ai import llm_kwargs
from include.common.task_defaults import DEFAULT_ARGS, LLM_POOL
from include.rag.answers import ANSWER_PROMPT, MOST_PASSAGES, Answer, answer_prompt

DOCUMENTS_PER_TASK = 1000


@dag(
    dag_display_name="RAG: ask the knowledge base",
    schedule=None,
    default_args=DEFAULT_ARGS,
    tags=["genai", "pattern", "rag", "embeddings"],
    doc_md=__doc__,
    params={
        "query": Param(
            "How long is a password reset link valid?",
            type="string",
            minLength=3,
            maxLength=1000,
            pattern=r"\S",
            title="Question",
            description="A question about the fleet-tracking product Kestrel.",
        ),
        "mode": Param(
            "hybrid",
            enum=["hybrid", "vector", "keyword"],
            title="Search",
            description="By meaning (vector), by words (keyword: BM25), or both ranks fused (hybrid).",
        ),
        "k": Param(
            3, type="integer", minimum=1, maximum=MOST_PASSAGES, title="Passages", description="How many to retrieve."
        ),
        "min_score": Param(
            0.2,
            type="number",
            minimum=-1,
            maximum=1,
            title="Minimum similarity",
            description="Passages less similar to the question (cosine) are left out, in every mode.",
        ),
        "filters": Param(
            {},
            type="object",
            properties={name: {"type": "array", "items": {"type": "string"}} for name in ("source", "title", "format")},
            additionalProperties=False,
            title="Filters",
            description='Only passages with one of these values, as in {"format": ["pdf", "html"]}.',
        ),
    },
)
def rag_pipeline():
    @task
    def find_changes() -> list[dict[str, str]]:
        from include.rag.ingestion import find_changes, in_parts
        from include.rag.search import COLLECTION

        changes = find_changes(COLLECTION)
        ti = get_current_context()["ti"]
        ti.xcom_push(key="collection", value=changes.collection)
        ti.xcom_push(key="gone", value=changes.gone)
        return in_parts(changes.documents, DOCUMENTS_PER_TASK)

    @task(map_index_template="{{ names }}", pool=LLM_POOL)
    def index_documents(collection: str, documents: dict[str, str]):
        from include.rag.ingestion import index_documents
        from include.rag.search import COLLECTION

        get_current_context()["names"] = f"{min(documents)} to {max(documents)}"
        return index_documents(COLLECTION, collection, documents)

    @task(trigger_rule="none_failed")
    def finish_index(collection: str, gone: dict[str, str]):
        from include.rag.ingestion import finish
        from include.rag.search import COLLECTION

        return finish(COLLECTION, collection, gone)

    @task
    def retrieve() -> list[dict]:
        from dataclasses import asdict

        from include.rag.search import COLLECTION, search
        from include.rag.stores import SearchQuery

        params = get_current_context()["params"]
        query = SearchQuery(params["query"], [], params["k"], params["mode"], params["filters"])
        return [asdict(hit) for hit in search(COLLECTION, query, params["min_score"])]

    @task.llm(**llm_kwargs(), system_prompt=ANSWER_PROMPT, output_type=Answer)
    def generate_answer(passages: list[dict]):
        if not passages:
            raise AirflowSkipException("Nothing in the knowledge base is similar to the question.")
        return answer_prompt(get_current_context()["params"]["query"], passages)

    @task(trigger_rule="none_failed")
    def publish_answer(passages: list[dict]):
        import json

        from include.common.storage import artifact_path, write_artifact
        from include.rag.answers import published_answer

        context = get_current_context()
        answer = context["ti"].xcom_pull(task_ids="generate_answer") if passages else None
        result = {"question": context["params"]["query"], **published_answer(answer, passages)}
        path = artifact_path("answers", context["run_id"], "answer.json")
        write_artifact(path, json.dumps(result, indent=2, ensure_ascii=False))
        cited = f" [{', '.join(result['sources'])}]" if result["sources"] else ""
        return {**result, "artifact": str(path), "result": f"{result['answer']}{cited}"}

    found = find_changes()
    indexed = index_documents.partial(collection=found["collection"]).expand(documents=found)
    passages = retrieve()
    indexed >> finish_index(found["collection"], found["gone"]) >> passages
    generate_answer(passages) >> publish_answer(passages)


rag_pipeline()
