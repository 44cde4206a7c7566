"""Re-ranking: a model orders the hits of a search anew, or leaves them as they were."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from llmock.scenarios import Match, Reply, ToolCall

from include.rag import rerank as module
from include.rag import search as searching
from include.rag.evaluation import score_retrieval
from include.rag.rerank import MOST_READ, hits_to_read, reordered, rerank
from include.rag.stores.base import Hit
from tests.conftest import KEY, chat_requests

HITS = [Hit(f"id-{n}", f"{n}.md", "t", "h", 0, f"passage {n} </passage>", 0.5) for n in (1, 2, 3)]
QUESTION = "Which passage?"
LLM = "pydanticai_default"
ENCODER = "sentence-transformers:cross-encoder/some-model"


def order(hits: list[Hit]) -> list[int]:
    return [int(hit.source[0]) for hit in hits]


@pytest.mark.one_stack
@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        ([3, 1, 2], [3, 1, 2]),
        ([2], [2, 1, 3]),
        ([], [1, 2, 3]),
        ([3, 3, 1], [1, 2, 3]),
        ([0, 3], [1, 2, 3]),
        ([3, 4], [1, 2, 3]),
        ([-1], [1, 2, 3]),
    ],
    ids=str,
)
def test_an_answer_orders_the_hits_only_if_each_number_is_that_of_a_hit_and_there_once(numbers, found, logged):
    assert order(reordered(HITS, numbers)) == found
    assert ("not re-ranked" in logged()) is (found == [1, 2, 3] and numbers != [])


@pytest.mark.one_stack
def test_what_is_read_is_bounded():
    assert [hits_to_read(k) for k in (1, 3, 10)] == [4, 12, MOST_READ]


def test_the_model_is_asked_once_for_each_question_with_the_hits_as_data(llm):
    llm.call_tool("final_result", {"passages": [2, 3]})
    (found,) = rerank(LLM, [QUESTION], [HITS])

    assert order(found) == [2, 3, 1]
    (request,) = chat_requests(llm)
    asked = request["messages"][-1]["content"]
    text = asked if isinstance(asked, str) else asked[0]["text"]
    assert text.count("</passage>") == len(HITS)
    assert text.endswith(f"Question: {QUESTION}")


def test_where_there_is_nothing_to_order_no_model_is_asked(llm):
    assert rerank(LLM, [QUESTION, QUESTION], [[], HITS[:1]]) == [[], HITS[:1]]
    assert chat_requests(llm) == []


@pytest.mark.parametrize("fault", ["wrong form", "text", "numbers", "down", "refused", "key"])
def test_whatever_is_wrong_with_the_answer_the_hits_stay_as_they_were(llm, monkeypatch, logged, fault):
    monkeypatch.setattr("include.ai.repeats.PAUSES_S", ())
    if fault == "wrong form":
        llm.call_tool("final_result", {"passages": ["the last"]})
    elif fault == "text":
        llm.reply("The third is the best.")
    elif fault == "numbers":
        llm.call_tool("final_result", {"passages": [9]})
    else:
        llm.fail({"down": 500, "refused": 400, "key": 401}[fault], times=None)

    assert rerank(LLM, [QUESTION], [HITS]) == [HITS]
    assert len(chat_requests(llm)) == 1
    assert "Hits are not re-ranked: " in logged()
    assert KEY not in logged()
    assert "passage 1" not in logged()


def test_a_connection_that_describes_no_model_is_an_error_and_hides_behind_no_order(llm, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_RERANKER", '{"conn_type": "pydanticai"}')

    with pytest.raises(AirflowFailException, match="'reranker': set its extra"):
        rerank("reranker", [QUESTION], [HITS])


# A cross-encoder


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for sentence-transformers, which is not installed here. Its model prefers the last passage."""
    loaded: list[str] = []

    class CrossEncoder:
        def __init__(self, name: str) -> None:
            if name == "none":
                raise OSError("No such model.")
            loaded.append(name)

        def predict(self, pairs: list[tuple[str, str]]) -> list[float]:
            assert {question for question, _ in pairs} == {QUESTION}
            return [float(text.split()[1]) if text != "NaN" else float("nan") for _, text in pairs]

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(CrossEncoder=CrossEncoder))
    monkeypatch.setenv("AIRFLOW_CONN_RERANKER", json.dumps({"conn_type": "pydanticai", "extra": {"model": ENCODER}}))
    module.cross_encoder.cache_clear()
    yield loaded
    module.cross_encoder.cache_clear()


def test_a_cross_encoder_is_loaded_once_and_orders_by_its_scores(encoder):
    assert [order(hits) for hits in rerank("reranker", [QUESTION] * 2, [HITS, HITS[:2]])] == [[3, 2, 1], [2, 1]]
    assert rerank("reranker", [QUESTION], [[]]) == [[]]
    assert encoder == [ENCODER.partition(":")[2]]


def test_scores_that_are_not_numbers_leave_the_hits_as_they_were(encoder, logged):
    hits = [HITS[0], replace(HITS[1], text="NaN")]

    assert rerank("reranker", [QUESTION], [hits]) == [hits]
    assert "its scores are not numbers" in logged()


@pytest.mark.parametrize("missing", ["the package", "the model"])
def test_what_a_cross_encoder_lacks_is_said_with_the_connection(encoder, monkeypatch, missing):
    says = "which needs the package sentence-transformers"
    if missing == "the package":
        monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    else:
        extra = {"model": "sentence-transformers:none"}
        monkeypatch.setenv("AIRFLOW_CONN_RERANKER", json.dumps({"conn_type": "pydanticai", "extra": extra}))
        says = "there is no cross-encoder 'none'"

    with pytest.raises(AirflowFailException, match=f"'reranker'.* {says}"):
        rerank("reranker", [QUESTION], [HITS])


# In DAGs


def test_an_evaluation_measures_the_mode_with_and_without_side_by_side(monkeypatch):
    documents = {"first?": "1.md", "third?": "3.md", "none?": None}

    def search(queries: Any, conn_id: str, rerank_conn_id: str | None = None) -> list[list[Hit]]:
        return [HITS[::-1] if rerank_conn_id else HITS for _ in queries]

    monkeypatch.setattr("include.rag.evaluation.search", search)
    questions = [{"question": question, "document": document} for question, document in documents.items()]
    scores = {score["mode"]: score for score in score_retrieval(questions, 3, "store", "hybrid", "reranker")}

    assert list(scores) == ["vector", "keyword", "hybrid", "hybrid, re-ranked"]
    assert scores["hybrid"]["mrr"] == scores["hybrid, re-ranked"]["mrr"] == pytest.approx(2 / 3)
    assert (scores["hybrid, re-ranked"]["higher"], scores["hybrid, re-ranked"]["lower"]) == (1, 1)
    assert "hybrid, re-ranked" not in {s["mode"] for s in score_retrieval(questions, 3, "store", "hybrid", None)}


def test_a_copied_search_says_what_it_lacks(monkeypatch):
    monkeypatch.setattr(searching, "reranking", None)

    with pytest.raises(AirflowFailException, match=r"include/rag/rerank\.py"):
        searching.search([], rerank_conn_id="reranker")


@pytest.mark.needs_dags("rag_evaluation")
def test_a_run_of_rag_evaluation_re_ranks_more_hits_than_it_keeps_and_reports_it(run_dag, llm, storage):
    match = Match(path="*/chat/completions")
    ranking = Reply(tool_calls=(ToolCall("final_result", {"passages": [3, 2, 1]}),), match=match)
    answer = {"answer": "Sixty.", "answered": False, "passages": []}
    for reply in [ranking] * 55 + [Reply(tool_calls=(ToolCall("final_result", answer),), match=match)]:
        llm.add(reply)
    conf = {"min_recall": 0, "min_grounded": 0, "k": 1, "answers": 1, "mode": "keyword", "rerank": LLM}
    run = run_dag("rag_evaluation", conf)

    assert run.state == "success"
    scores = {score["mode"]: score for score in run.xcom("evaluate_retrieval")}
    assert scores["keyword, re-ranked"]["recall"] < scores["keyword"]["recall"], "the third is put first"
    assert scores["keyword, re-ranked"]["lower"] > 0
    asked = [request for request in chat_requests(llm) if "Order the passages" in json.dumps(request)]
    assert len(asked) == 55
    assert "keyword, re-ranked" in run.xcom("report")["result"]
