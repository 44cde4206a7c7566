"""The DAG `rag_evaluation` and what it measures with."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from llmock.scenarios import Match, Reply, ToolCall

from include.rag.documents import listed_documents
from include.rag.evaluation import is_grounded, regressions, spread_sample
from include.sample.data import evaluation_questions
from include.spend.scores import read_scores
from tests.conftest import chat_requests, embedding_requests

PASSAGES = [
    {"id": "chunk-a", "source": "a.md", "text": "Reset links\nA reset link is valid for 60 minutes."},
    {"id": "chunk-b", "source": "b.md", "text": "Prices\nStarter is 9 EUR."},
]
ANSWERABLE = {"question": "How long is a reset link valid?", "document": "a.md"}
UNANSWERABLE = {"question": "What is the capital of France?", "document": None}


def given(answer: str, passages: list[int], answered: bool = True) -> dict[str, Any]:
    return {"answer": answer, "answered": answered, "passages": passages}


def test_the_questions_are_many_different_and_name_documents_that_there_are():
    questions = evaluation_questions()
    documents = Counter(each["document"] for each in questions)

    assert len({each["question"] for each in questions}) == len(questions) >= 60
    assert documents.pop(None) >= 10
    assert set(documents) == set(listed_documents())


@pytest.mark.parametrize(
    ("question", "answer", "grounded"),
    [
        (ANSWERABLE, given("A reset link is valid for 60 minutes.", [1]), True),
        (ANSWERABLE, given("The link is valid for 60 minutes.", [2, 1]), True),
        (ANSWERABLE, given("A reset link is valid for 90 minutes.", [1]), False),
        (ANSWERABLE, given("A reset link is valid for 60 minutes.", [2]), False),
        (ANSWERABLE, given("Links never end anywhere at all, they say.", [1]), False),
        (ANSWERABLE, given("A reset link is valid for 60 minutes.", []), False),
        (ANSWERABLE, given("...", [1]), False),
        (UNANSWERABLE, given("Paris", [], answered=False), True),
        (UNANSWERABLE, given("A reset link is valid for 60 minutes.", [1]), False),
    ],
)
def test_an_answer_is_grounded_if_what_it_cites_holds_it(question, answer, grounded):
    assert is_grounded(question, PASSAGES, answer) is grounded


def test_a_sample_is_spread_over_all_questions_and_the_same_at_every_run():
    questions = evaluation_questions()

    assert spread_sample(questions, 4) == spread_sample(questions, 4)
    assert any(each["document"] is None for each in spread_sample(questions, 4))
    assert spread_sample(questions, 1000) == questions
    assert spread_sample([], 3) == []


def test_each_score_below_its_threshold_is_named():
    scores = [
        {"store": "s", "mode": mode, "recall": recall, "mrr": 0.5, "missed": []}
        for mode, recall in (("hybrid", 0.79), ("keyword", 0.1))
    ]

    assert regressions(scores, "hybrid", 0.8, {"a": True, "b": False}, 0.6) == [
        "recall of hybrid search in s is 0.79, below 0.80",
        "the share of grounded answers is 0.50, below 0.60",
    ]
    assert regressions(scores, "hybrid", 0.79, {"a": True, "b": False}, 0.5) == []


def script_answers(llm: Any, number: int) -> None:
    for _ in range(number):
        arguments = given("Sixty minutes.", [1], answered=False)
        llm.add(Reply(tool_calls=(ToolCall("final_result", arguments),), match=Match(path="*/chat/completions")))


def test_a_run_measures_every_mode_and_leaves_a_table_and_a_chart(run_dag, llm, storage):
    script_answers(llm, 4)
    run = run_dag("rag_evaluation", {"min_recall": 0, "k": 5, "answers": 4, "min_grounded": 0})

    assert run.state == "success"
    scores = {score["mode"]: score for score in run.xcom("evaluate_retrieval")}
    assert scores.keys() == {"vector", "keyword", "hybrid"}
    assert scores["keyword"]["recall"] > 0.8  # these embeddings are pseudo-random, the words are not
    assert scores["keyword"]["recall"] > scores["hybrid"]["recall"] > scores["vector"]["recall"]
    assert all(score["mrr"] <= score["recall"] for score in scores.values())
    assert len(chat_requests(llm)) == 4
    assert len(embedding_requests(llm)) < 20

    reported = run.xcom("report")
    assert list(reported["grounded"].values()) == [each["document"] is None for each in run.xcom("retrieve_passages")]
    folder = Path(reported["artifacts"].removeprefix("file://"))
    table = (folder / "report.md").read_text()
    assert f"| vector_store_default | keyword | {scores['keyword']['recall']:.2f} |" in table
    assert scores["vector"]["missed"][0] in table
    assert (folder / "scores.svg").read_text().startswith("<?xml")

    day = run.run.run_after.date()
    recorded = {(each.subject, each.metric): each for each in read_scores(day, day, {"rag_evaluation"}).scores}
    found = recorded["retrieval from vector_store_default, keyword", "recall@5"]
    assert (found.value, found.run_id) == (scores["keyword"]["recall"], run.run.run_id)
    answers = recorded["answers from the knowledge base", "grounded"]
    assert (answers.cases, answers.model) == (4, "openai-chat:gpt-6-luna")
    assert len(recorded) == 3 * 2 + 1


@pytest.mark.one_stack
def test_a_regression_fails_the_run_without_a_retry_and_leaves_the_report(run_dag, llm, storage, logged):
    script_answers(llm, 1)
    run = run_dag("rag_evaluation", {"min_recall": 0.99, "mode": "vector", "answers": 1, "min_grounded": 0})

    assert run.state == "failed"
    assert run.task_instance("check_thresholds").try_number == 1
    assert "recall of vector search in vector_store_default is" in logged()
    assert run.states()["report"] == "success"


@pytest.mark.one_stack
def test_several_stores_are_measured_side_by_side(run_dag, llm, storage, monkeypatch, tmp_path):
    other = json.dumps({"conn_type": "lancedb", "host": str(tmp_path / "other")})
    monkeypatch.setenv("AIRFLOW_CONN_OTHER_STORE", other)
    script_answers(llm, 1)
    stores = ["vector_store_default", "other_store"]
    run = run_dag("rag_evaluation", {"min_recall": 0, "answers": 1, "min_grounded": 0, "stores": stores})

    assert run.state == "success"
    by_store = Counter(score["store"] for score in run.xcom("evaluate_retrieval"))
    assert by_store == {"vector_store_default": 3, "other_store": 3}
