"""Measure retrieval and answers on questions whose documents are known."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, NotRequired, TypedDict, get_args

from include.ai import LLM_CONN_ID
from include.ai.connection import read_model_source
from include.ai.embeddings import DEFAULT_MODEL as DEFAULT_EMBEDDINGS
from include.ai.embeddings import EMBEDDINGS_CONN_ID
from include.ai.model import DEFAULT_MODEL
from include.common.charts import bar_chart
from include.common.fingerprint import fingerprint
from include.common.grading import word_recall
from include.common.markdown import as_markdown_line, table
from include.common.results import publish, report, run_folder
from include.rag.answers import ANSWER_PROMPT, Answer, published_answer
from include.rag.search import search
from include.rag.stores.base import Hit, SearchMode, SearchQuery

try:
    from include.spend import scores as score_book
except ImportError:  # a copied pattern may lack it: then the scores are only in its reports
    score_book = None  # type: ignore[assignment]

# An answer is grounded if its passages hold this share of its words, and all of its numbers.
GROUNDED_WORDS = 0.8


class Score(TypedDict):
    """Retrieval in one store and mode. `recall`: the share of questions whose document is among the first k passages.

    `mrr`: the mean of 1 / rank of the document's first passage, 0 if it is not among them. `questions`: their number.
    `higher` and `lower`: for how many of them re-ranking moved the document up and down.
    """

    store: str
    mode: str
    questions: int
    recall: float
    mrr: float
    missed: list[str]
    higher: NotRequired[int]
    lower: NotRequired[int]


def search_name(mode: str, rerank_conn_id: str | None) -> str:
    """Return the name of a search in scores and reports."""
    return f"{mode}, re-ranked" if rerank_conn_id else mode


def score_retrieval(
    questions: Sequence[Mapping[str, Any]],
    k: int,
    conn_id: str,
    rerank_mode: SearchMode | None = None,
    rerank_conn_id: str | None = None,
) -> list[Score]:
    """Score each search mode in the store `conn_id`, on the questions that have a document.

    :param rerank_mode: the mode that is also scored with re-ranking, if `rerank_conn_id` is given.
    :param rerank_conn_id: the connection to the re-ranking model.
    :raises AirflowFailException: the store has no index, or one of another embedding model.
    """
    asked = [each for each in questions if each["document"]]
    modes: tuple[SearchMode, ...] = get_args(SearchMode)
    hits = iter(search([SearchQuery(each["question"], k, mode) for mode in modes for each in asked], conn_id=conn_id))
    ranks = {mode: _ranks(asked, [next(hits) for _ in asked]) for mode in modes}
    scores = [_score(conn_id, mode, of_mode) for mode, of_mode in ranks.items()]
    if rerank_mode and rerank_conn_id:
        queries = [SearchQuery(each["question"], k, rerank_mode) for each in asked]
        reranked = _ranks(asked, search(queries, conn_id=conn_id, rerank_conn_id=rerank_conn_id))
        # Reciprocal, so that a document that is not among the first k ranks below all that are.
        moved = [_reciprocal(rank) - _reciprocal(ranks[rerank_mode][question]) for question, rank in reranked.items()]
        score = _score(conn_id, search_name(rerank_mode, rerank_conn_id), reranked)
        scores.append({**score, "higher": sum(each > 0 for each in moved), "lower": sum(each < 0 for each in moved)})
    return scores


def _score(store: str, mode: str, ranks: Mapping[str, int]) -> Score:
    return Score(
        store=store,
        mode=mode,
        questions=len(ranks),
        recall=mean(rank > 0 for rank in ranks.values()),
        mrr=mean(_reciprocal(rank) for rank in ranks.values()),
        missed=[question for question, rank in ranks.items() if not rank],
    )


def _ranks(asked: Sequence[Mapping[str, Any]], found: Sequence[Sequence[Hit]]) -> dict[str, int]:
    """Return the rank of each question's document among its hits, from 1; 0 if it is not among them."""
    ranks = {}
    for each, hits in zip(asked, found, strict=True):
        sources = [hit.source for hit in hits]
        ranks[each["question"]] = sources.index(each["document"]) + 1 if each["document"] in sources else 0
    return ranks


def _reciprocal(rank: int) -> float:
    return 1 / rank if rank else 0.0


def spread_sample(questions: Sequence[Mapping[str, Any]], size: int) -> list[Mapping[str, Any]]:
    """Take `size` of the questions, evenly from the whole list and the same in every run."""
    size = min(size, len(questions))
    return [questions[(2 * n + 1) * len(questions) // (2 * size)] for n in range(size)]


def is_grounded(question: Mapping[str, Any], passages: Sequence[Mapping[str, Any]], answer: Mapping[str, Any]) -> bool:
    """Return whether the passages that it cites support the answer, or it rightly says "I don't know".

    :param answer: `include.rag.answers.Answer`, as XCom has it.
    """
    published = published_answer(answer, passages)
    if not published["answered"] or question["document"] is None:
        return not published["answered"] and question["document"] is None
    cited = "\n".join(passage["text"] for passage in passages if passage["id"] in published["chunks"])
    numbers = set(re.findall(r"\d+", published["answer"]))
    return (
        re.search(r"\w", published["answer"]) is not None
        and numbers <= set(re.findall(r"\d+", cited))
        and word_recall(cited, published["answer"]) >= GROUNDED_WORDS
    )


def write_report(k: int, scores: Sequence[Score], grounded: Mapping[str, bool]) -> str:
    """Write a table and a chart of the scores, and the questions that were missed; return the URL of their folder.

    :param grounded: by question, whether its answer is grounded.
    """
    rows = [[s["store"], s["mode"], f"{s['recall']:.2f}", f"{s['mrr']:.2f}"] for s in scores]
    lines = [table(["store", "mode", f"recall@{k}", "MRR"], rows)]
    lines += [
        f"\nOf {s['questions']} questions, re-ranking moved the document of {s['higher']} up, and of {s['lower']} down."
        for s in scores
        if "higher" in s
    ]
    lines += ["", f"Grounded answers: {sum(grounded.values())} of {len(grounded)}", ""]
    lines += [
        f"- {'grounded' if good else 'not grounded'}: {as_markdown_line(question)}"
        for question, good in grounded.items()
    ]
    for score in scores:
        lines += ["", f"Not found by {score['mode']} search in {score['store']}:", ""]
        lines += [f"- {as_markdown_line(question)}" for question in score["missed"]] or ["- nothing"]
    publish("report.md", report(f"Retrieval of {k} passages, and answers from them", "\n".join(lines), asked="answer"))
    several = len({score["store"] for score in scores}) > 1
    bars = {
        f"{s['store']}, {s['mode']}" if several else s["mode"]: {f"recall@{k}": s["recall"], "MRR": s["mrr"]}
        for s in scores
    }
    publish("scores.svg", bar_chart(f"Retrieval of {k} passages", "score, 0 to 1", bars))
    return str(run_folder())


def record_scores(k: int, scores: Sequence[Score], grounded: Mapping[str, bool], mode: str) -> None:
    """Record the scores for the page GenAI, with the models and the prompt that they measure.

    :param mode: the search that found the passages of the answers.
    """
    if score_book is None:
        return
    embeddings = read_model_source(EMBEDDINGS_CONN_ID, DEFAULT_EMBEDDINGS).model_id
    for score in scores:
        subject, settings = f"retrieval from {score['store']}, {score['mode']}", fingerprint(score["mode"], k)
        for metric, value in ((f"recall@{k}", score["recall"]), ("MRR", score["mrr"])):
            score_book.record_score(
                subject, metric, value, cases=score["questions"], model=embeddings, fingerprint=settings
            )
    if grounded:
        score_book.record_score(
            "answers from the knowledge base",
            "grounded",
            mean(grounded.values()),
            cases=len(grounded),
            model=read_model_source(LLM_CONN_ID, DEFAULT_MODEL).model_id,
            fingerprint=fingerprint(ANSWER_PROMPT, Answer.model_json_schema(), mode, k),
        )


def regressions(
    scores: Sequence[Score], mode: str, min_recall: float, grounded: Mapping[str, bool], min_grounded: float
) -> list[str]:
    """Name what is below its threshold: recall in this mode, in each store, and the share of grounded answers."""
    found = [
        f"recall of {score['mode']} search in {score['store']} is {score['recall']:.2f}, below {min_recall:.2f}"
        for score in scores
        if score["mode"] == mode and score["recall"] < min_recall
    ]
    if grounded and (share := mean(grounded.values())) < min_grounded:
        found.append(f"the share of grounded answers is {share:.2f}, below {min_grounded:.2f}")
    return found
