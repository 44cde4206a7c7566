"""What `evaluate_prompts` evaluates: the LLM tasks of this project. Add your own, and take out what you deleted.

It depends on the patterns that it evaluates, so it is a layer above them; none of them depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException

from include.evaluation.judge import REPLY_RUBRIC
from include.evaluation.scorers import (
    Asked,
    Given,
    Metrics,
    SameFields,
    SameOutput,
    SameSet,
    Scored,
    ToolCalls,
    facts_in,
    precision_and_recall,
)
from include.evaluation.subjects import Subject, by_argument, by_param

# Agents have 40 cases, which can show a loss of 20 points, not of 10.
LOSS_OF_AGENTS = 0.2
PASSAGES = 3


def subjects(cases: Path) -> list[Subject]:
    """Return the subjects. No file is read yet.

    :param cases: the folder of the labelled cases.
    """
    return [
        Subject(
            "ticket_analysis",
            dag_id="prompt_chaining",
            task_id="analyze_ticket",
            cases=cases / "tickets.jsonl",
            ask=by_param("ticket"),
            scorer=SameFields("category", "urgency"),
        ),
        Subject(
            "replies",
            dag_id="prompt_chaining",
            task_id="write_reply",
            cases=cases / "tickets.jsonl",
            ask=_ask_reply,
            scorer=Scored(),
            rubric=REPLY_RUBRIC,
            labelled=cases / "replies.jsonl",
        ),
        Subject(
            "severity",
            dag_id="routing",
            task_id="route_incident",
            cases=cases / "incidents.jsonl",
            ask=by_param("incident"),
            scorer=SameOutput("severity", prefix="handle_"),
        ),
        Subject(
            "teams",
            dag_id="routing",
            task_id="choose_teams",
            cases=cases / "incidents.jsonl",
            ask=by_param("incident"),
            scorer=SameSet("teams"),
        ),
        Subject(
            "sentiment",
            dag_id="batch_inference",
            task_id="analyze",
            cases=cases / "reviews.jsonl",
            ask=by_argument("row", "review"),
            scorer=SameFields("sentiment"),
        ),
        Subject(
            "triage",
            dag_id="on_demand_inference",
            task_id="answer",
            cases=cases / "messages.jsonl",
            ask=by_param("message"),
            scorer=SameFields("category", "urgency"),
        ),
        Subject(
            "plans",
            dag_id="multi_agent",
            task_id="plan_work",
            cases=cases / "plans.jsonl",
            ask=lambda inputs: [Asked(params=each) for each in inputs],
            scorer=Specialists(),
            loss=LOSS_OF_AGENTS,
        ),
        Subject(
            "tool_calls",
            dag_id="multi_agent",
            task_id="research_market",
            cases=cases / "tool_calls.jsonl",
            ask=lambda inputs: [Asked({"company": e["company"]}, {"assignment": e["assignment"]}) for e in inputs],
            scorer=ToolCalls(),
            loss=LOSS_OF_AGENTS,
        ),
        Subject(
            "judge",
            dag_id="evaluator_optimizer",
            task_id="round_1.judge",
            cases=cases / "replies.jsonl",
            ask=lambda inputs: [
                Asked({"ticket": each["ticket"]}, {"draft": {"reply": each["reply"]}}) for each in inputs
            ],
            scorer=SameFields("passed"),
            loss=LOSS_OF_AGENTS,
        ),
        Subject(
            "answers",
            dag_id="rag_pipeline",
            task_id="generate_answer",
            cases=cases / "answers.jsonl",
            ask=_ask_knowledge_base,
            scorer=CitedAnswer(),
        ),
    ]


class Specialists:
    """The right specialists get work: `precision` and `recall`."""

    fields = ("specialists",)

    def __call__(self, expected: Mapping[str, Any], given: Given, asked: Asked) -> Metrics:
        return precision_and_recall([name for name, work in given.output.items() if work], expected["specialists"])


class CitedAnswer:
    """A right document is cited and the facts are given, or the answer says that nothing is known."""

    fields = ("answered", "documents", "facts")

    def __call__(self, expected: Mapping[str, Any], given: Given, asked: Asked) -> Metrics:
        answer = _rag().answers.published_answer(given.output, asked.arguments["passages"])
        is_cited = bool(set(answer["sources"]) & set(expected["documents"])) or not expected["answered"]
        return {
            "answered": float(answer["answered"] == expected["answered"]),
            "cited": float(is_cited),
            "facts": facts_in(answer["answer"], expected["facts"]),
        }


def _ask_knowledge_base(questions: Sequence[str]) -> list[Asked]:
    """Retrieve the passages for each question, as `rag_pipeline` does."""
    rag = _rag()
    rag.ingestion.refresh_index("vector_store_default")
    found = rag.search.search([rag.search.SearchQuery(question, PASSAGES, "hybrid") for question in questions])
    return [
        Asked({"query": question}, {"passages": [asdict(hit) for hit in hits]})
        for question, hits in zip(questions, found, strict=True)
    ]


def _ask_reply(tickets: Sequence[str]) -> list[Asked]:
    """Give each ticket the same analysis, as the step before is not measured."""
    analysis = {"category": "technical", "urgency": "medium", "key_issues": ["what the ticket says"]}
    return [Asked({"ticket": ticket}, {"analysis": analysis}) for ticket in tickets]


def _rag() -> Any:
    """Import retrieval and citation, which neither parsing nor the other subjects need."""
    try:
        from include.rag import answers, ingestion, search
    except ImportError:  # a copied project may lack it
        raise AirflowFailException("The subject 'answers' needs include/rag: copy the DAG rag_pipeline, too.") from None
    return SimpleNamespace(answers=answers, ingestion=ingestion, search=search)
