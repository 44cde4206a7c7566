"""
### RAG evaluation: how good are retrieval and answers, and did a change make them worse?

Asks the knowledge base 66 questions whose documents are known, in every search mode and in each store that the run
names, and measures recall@k and MRR. A sample of the questions, some of which no document answers, goes to the
language model too: an answer is grounded if the passages that it cites support it, or if it rightly says that there is
none. It leaves a table and a chart. **A score below its threshold fails the run**, once the report is written:
schedule it, or run it before a new model, chunk size or prompt goes live.
"""

from dataclasses import asdict

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import Param, dag, get_current_context, task

from include.ai import llm_kwargs
from include.common.params import limits
from include.common.task_defaults import DEFAULT_ARGS, LLM_POOL
from include.rag.answers import ANSWER_PROMPT, MOST_PASSAGES, Answer, answer_prompt
from include.rag.evaluation import (
    is_grounded,
    record_scores,
    regressions,
    score_retrieval,
    search_name,
    spread_sample,
    write_report,
)
from include.rag.ingestion import refresh_index
from include.rag.search import search
from include.rag.stores.base import SearchQuery
from include.sample.data import evaluation_questions


@dag(
    description="Measures retrieval and answers of the knowledge base, and fails if they got worse.",
    schedule=None,
    default_args=DEFAULT_ARGS,
    tags=["genai", "pattern", "rag", "evaluation"],
    doc_md=__doc__,
    params={
        "stores": Param(
            ["vector_store_default"],
            type="array",
            items={"type": "string", "maxLength": 200},
            minItems=1,
            maxItems=10,
            uniqueItems=True,
            title="Stores",
            description="Connections to vector stores. Their indexes are brought up to date first.",
        ),
        "k": Param(
            3,
            type="integer",
            **limits(minimum=1, maximum=MOST_PASSAGES),
            title="Passages",
            description="How many to retrieve.",
        ),
        "mode": Param(
            "hybrid",
            enum=["hybrid", "vector", "keyword"],
            title="Search",
            description="The mode that must reach the minimum recall, and that finds the passages for the answers.",
        ),
        "rerank": Param(
            None,
            type=["null", "string"],
            **limits(maxLength=200),
            title="Re-ranking",
            description="The connection to a model that re-ranks the passages, measured beside the mode without it.",
        ),
        "min_recall": Param(
            0.8,
            type="number",
            **limits(minimum=0, maximum=1),
            title="Minimum recall",
            description="The run fails if fewer of the questions find their document.",
        ),
        "answers": Param(
            100,
            type="integer",
            **limits(minimum=1, maximum=1000),
            title="Answers",
            description="The most questions that the language model answers. Each is one call.",
        ),
        "min_grounded": Param(
            0.9,
            type="number",
            **limits(minimum=0, maximum=1),
            title="Minimum share of grounded answers",
            description="The run fails if there are fewer. The embedded model is too small for this: set 0 for it.",
        ),
    },
)
def rag_evaluation():
    @task(pool=LLM_POOL)
    def evaluate_retrieval():
        params = get_current_context()["params"]
        scores = []
        for conn_id in params["stores"]:
            refresh_index(conn_id)
            scores += score_retrieval(evaluation_questions(), params["k"], conn_id, params["mode"], params["rerank"])
        return scores

    @task(pool=LLM_POOL)
    def retrieve_passages():
        params = get_current_context()["params"]
        sample = spread_sample(evaluation_questions(), params["answers"])
        queries = [SearchQuery(each["question"], params["k"], params["mode"]) for each in sample]
        found = search(queries, conn_id=params["stores"][0], rerank_conn_id=params["rerank"])
        return [{**each, "passages": [asdict(hit) for hit in hits]} for each, hits in zip(sample, found, strict=True)]

    @task.llm(**llm_kwargs(), system_prompt=ANSWER_PROMPT, output_type=Answer, map_index_template="{{ number }}")
    def answer(asked: dict):
        context = get_current_context()
        context["number"] = f"question {context['ti'].map_index + 1}"
        return answer_prompt(asked["question"], asked["passages"])

    @task
    def report(scores: list[dict], asked: list[dict], answers: list[dict]):
        context = get_current_context()
        grounded = {
            each["question"]: is_grounded(each, each["passages"], given)
            for each, given in zip(asked, answers, strict=True)
        }
        params = context["params"]
        folder = write_report(params["k"], scores, grounded)
        record_scores(params["k"], scores, grounded, search_name(params["mode"], params["rerank"]))
        recalls = ", ".join(f"{score['mode']} {score['recall']:.2f}" for score in scores)
        return {
            "artifacts": folder,
            "grounded": grounded,
            "result": f"recall@{params['k']}: {recalls}; grounded answers: {sum(grounded.values())} of {len(grounded)}",
        }

    @task
    def check_thresholds(scores: list[dict], reported: dict):
        params = get_current_context()["params"]
        used = search_name(params["mode"], params["rerank"])
        found = regressions(scores, used, params["min_recall"], reported["grounded"], params["min_grounded"])
        if found:
            raise AirflowFailException(f"Worse than allowed: {'; '.join(found)}. See {reported['artifacts']}")

    scores = evaluate_retrieval()
    asked = retrieve_passages()
    scores >> asked
    check_thresholds(scores, report(scores, asked, answer.expand(asked=asked)))


rag_evaluation()
