"""
### RAG: answer a question from a knowledge base, and cite the sources

The first half keeps the vector store in step with the documents: only changed chunks are embedded, in batches, and
removed documents are deleted. **A second run over unchanged documents embeds none of them.** After a change of the
embedding model, a new collection is filled and then replaces the old one: vectors of two models never mix.

The second half answers the question from the retrieved passages alone. If they hold no answer it says "I don't know",
and if nothing similar is found, no model is called at all. A citation of a passage that was not retrieved is refused,
and the model is asked again. The store is that of the connection *vector_store_default*: LanceDB or Weaviate.
"""

from dataclasses import asdict

from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import Param, dag, get_current_context, task

from include.ai import llm_kwargs
from include.common.params import limits
from include.common.results import publish, report
from include.common.task_defaults import DEFAULT_ARGS, LLM_POOL
from include.rag import ingestion
from include.rag.answers import (
    ANSWER_PROMPT,
    MOST_PASSAGES,
    Answer,
    answer_parts,
    answer_prompt,
    published_answer,
)
from include.rag.search import search
from include.rag.stores.base import FILTER_FIELDS, SearchQuery

DOCUMENTS_PER_TASK = 1000
FILTER = {"type": "array", "items": {"type": "string", "maxLength": 200}, "maxItems": 100}


@dag(
    description="Answers a question from the knowledge base, and cites its sources.",
    schedule=None,
    default_args=DEFAULT_ARGS,
    tags=["genai", "pattern", "rag", "embeddings"],
    doc_md=__doc__,
    params={
        "query": Param(
            "How long is a password reset link valid?",
            type="string",
            **limits(minLength=3, maxLength=1000),
            pattern=r"\S",
            title="Question",
            description="What to answer from the documents.",
        ),
        "mode": Param(
            "hybrid",
            enum=["hybrid", "vector", "keyword"],
            title="Search",
            description="By meaning (vector), by words (keyword: BM25), or both ranks fused (hybrid).",
        ),
        "k": Param(
            3,
            type="integer",
            **limits(minimum=1, maximum=MOST_PASSAGES),
            title="Passages",
            description="How many to retrieve.",
        ),
        "rerank": Param(
            None,
            type=["null", "string"],
            **limits(maxLength=200),
            title="Re-ranking",
            description="The connection to a model that re-ranks the passages, with one more call; empty: none.",
        ),
        "min_score": Param(
            0.2,
            type="number",
            **limits(minimum=-1, maximum=1),
            title="Minimum similarity",
            description="Passages less similar to the question (cosine) are left out, in every mode.",
        ),
        "filters": Param(
            {},
            type="object",
            properties=dict.fromkeys(FILTER_FIELDS, FILTER),
            additionalProperties=False,
            title="Filters",
            description='Only passages with one of these values, as in {"format": ["pdf", "html"]}.',
        ),
    },
)
def rag_pipeline():
    @task
    def find_changes():
        return ingestion.share_out(ingestion.find_changes(), DOCUMENTS_PER_TASK)

    # If the index is in step with the documents there is no share, and Airflow skips both tasks without starting them.
    @task(map_index_template="{{ names }}", pool=LLM_POOL)
    def index_documents(share: dict):
        names = share["documents"]
        get_current_context()["names"] = f"{min(names)} to {max(names)}" if names else "no documents"
        return ingestion.index_documents(share["collection"], share["documents"])

    @task
    def finish_index(shares: list[dict]):
        return ingestion.finish_index(shares[0]["collection"], shares[0]["gone"])

    @task(trigger_rule="none_failed")
    def retrieve():
        params = get_current_context()["params"]
        query = SearchQuery(params["query"], params["k"], params["mode"], params["filters"])
        (hits,) = search([query], params["min_score"], rerank_conn_id=params["rerank"])
        return [asdict(hit) for hit in hits]

    @task.llm(**llm_kwargs(), system_prompt=ANSWER_PROMPT, output_type=Answer)
    def generate_answer(passages: list[dict]):
        if not passages:
            raise AirflowSkipException("Nothing in the knowledge base is similar to the question.")
        return answer_prompt(get_current_context()["params"]["query"], passages)

    @task(trigger_rule="none_failed")
    def publish_answer(answer: dict | None, passages: list[dict]):
        context = get_current_context()
        result = {"question": context["params"]["query"], **published_answer(answer, passages)}
        publish("answer.md", report(result["question"], *answer_parts(result, passages), asked="generate_answer"))
        cited = f" [{', '.join(result['sources'])}]" if result["sources"] else ""
        return {**result, "artifact": publish("answer.json", result), "result": f"{result['answer']}{cited}"}

    shares = find_changes()
    passages = retrieve()
    index_documents.expand(share=shares) >> finish_index(shares) >> passages
    publish_answer(generate_answer(passages), passages)


rag_pipeline()
