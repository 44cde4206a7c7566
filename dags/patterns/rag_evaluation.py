"""
### RAG evaluation: how good are retrieval and answers, and did a change make them worse?

Asks the knowledge base 66 questions whose documents are known, in every search mode and in each store that the run
names, and measures recall@k and MRR. A sample of the questions, some of which no document answers, goes to the
language model too: an answer is grounded if it stands in the passages that it cites, or rightly says that there is
none. It leaves a table and a chart. **A score below its threshold fails the run**, once the report is written:
schedule it, or run it before a new model, chunk size or prompt goes live.
"""

from airflow.sdk import Param, dag, get_current_context, task

from include.ai import llm_kwargs
from include.common.task_defaults import DEFAULT_ARGS, LLM_POOL
from include.rag.answers import ANSWER_PROMPT, MOST_PASSAGES, Answer, answer_prompt


@dag(
    dag_display_name="RAG evaluation: measure the knowledge base's answers",
    schedule=None,
    default_args=DEFAULT_ARGS,
    tags=["genai", "pattern", "rag", "evaluation"],
    doc_md=__doc__,
    params={
        "stores": Param(
            ["vector_store_default"],
            type="array",
            items={"type": "string"},
            minItems=1,
            uniqueItems=True,
            title="Stores",
            description="Connections to vector stores. Their indexes are brought up to date first.",
        ),
        "k": Param(
            3, type="integer", minimum=1, maximum=MOST_PASSAGES, title="Passages", description="How many to retrieve."
        ),
        "mode": Param(
            "hybrid",
            enum=["hybrid", "vector", "keyword"],
            title="Search",
            description="The mode that the recall threshold holds for, and that passages for answers come from.",
        ),
        "min_recall": Param(
            0.8,
            type="number",
            minimum=0,
            maximum=1,
            title="Least recall",
            description="The run fails if fewer of the questions find their document.",
        ),
        "answers": Param(
            4,
            type="integer",
            minimum=1,
            maximum=1000,
            title="Answers",
            description="How many of the questions the language model answers, at most.",
        ),
        "min_grounded": Param(
            0.0,
            type="number",
            minimum=0,
            maximum=1,
            title="Least share of grounded answers",
            description="The run fails if there are fewer. 0.9 is within reach of a real model, not of the embedded.",
        ),
    },
)
def rag_evaluation():
    @task(pool=LLM_POOL)
    def evaluate_retrieval() -> list[dict]:
        from include.rag.evaluation import evaluate_retrieval
        from include.rag.ingestion import refresh_index
        from include.rag.search import COLLECTION
        from include.sample.data import evaluation_questions

        params = get_current_context()["params"]
        scores = []
        for conn_id in params["stores"]:
            refresh_index(COLLECTION, conn_id)
            scores += evaluate_retrieval(COLLECTION, evaluation_questions(), params["k"], conn_id)
        return scores

    @task(pool=LLM_POOL)
    def retrieve_passages() -> list[dict]:
        from dataclasses import asdict

        from include.rag.evaluation import spread_sample
        from include.rag.search import COLLECTION, search
        from include.rag.stores import SearchQuery
        from include.sample.data import evaluation_questions

        params = get_current_context()["params"]
        sample = spread_sample(evaluation_questions(), params["answers"])
        queries = [SearchQuery(each["question"], [], params["k"], params["mode"]) for each in sample]
        found = [search(COLLECTION, query, conn_id=params["stores"][0]) for query in queries]
        return [{**each, "passages": [asdict(hit) for hit in hits]} for each, hits in zip(sample, found, strict=True)]

    @task.llm(**llm_kwargs(), system_prompt=ANSWER_PROMPT, output_type=Answer, map_index_template="{{ question }}")
    def answer(asked: dict):
        get_current_context()["question"] = asked["question"]
        return answer_prompt(asked["question"], asked["passages"])

    @task
    def report(scores: list[dict], asked: list[dict], answers: list[dict]):
        from include.rag.evaluation import is_grounded, write_report

        context = get_current_context()
        grounded = {
            each["question"]: is_grounded(each, each["passages"], given)
            for each, given in zip(asked, answers, strict=True)
        }
        folder = write_report(context["run_id"], context["params"]["k"], scores, grounded)
        recalls = ", ".join(f"{score['mode']} {score['recall']:.2f}" for score in scores)
        return {
            "artifacts": folder,
            "grounded": grounded,
            "result": f"recall@{context['params']['k']}: {recalls}; grounded answers: "
            f"{sum(grounded.values())} of {len(grounded)}",
        }

    @task
    def check_thresholds(scores: list[dict], reported: dict):
        from airflow.providers.common.compat.sdk import AirflowFailException

        from include.rag.evaluation import regressions

        params = get_current_context()["params"]
        found = regressions(scores, params["mode"], params["min_recall"], reported["grounded"], params["min_grounded"])
        if found:
            raise AirflowFailException(f"Worse than allowed: {'; '.join(found)}. See {reported['artifacts']}")

    scores = evaluate_retrieval()
    asked = retrieve_passages()
    scores >> asked
    check_thresholds(scores, report(scores, asked, answer.expand(asked=asked)))


rag_evaluation()
