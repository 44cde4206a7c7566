"""Instructions in tickets, incidents, reviews, questions and documents, with a model that obeys every one of them.

What a fooled model reaches is what its task may do: the table of docs/security.md.
"""

from __future__ import annotations

import json
import re
import runpy
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.standard.operators.hitl import HITLOperator
from llmock.scenarios import Match, Reply, ToolCall
from markdown_it import MarkdownIt

from include.rag.answers import ANSWER_PROMPT
from tests.conftest import KEY, chat_requests, dag_files
from tests.injections import INJECTIONS, OBEYED

TEXT = "\n".join(INJECTIONS)
FORBIDDEN = "delete_everything"
# What the layers of the model seam keep on the storage.
RECORDS = {"ledger", "stored_answers"}


class Fooled:
    """A model that obeys the injections: first it tries what its task must not do, and then what it may."""

    def __init__(self, llm: Any, storage: Path, patch: pytest.MonkeyPatch) -> None:
        self.llm, self.storage, self.patch = llm, storage, patch

    def answers(self, *answers: dict[str, Any] | tuple[str, dict[str, Any]] | str) -> None:
        for answer in answers:
            name, arguments = answer if isinstance(answer, tuple) else ("final_result", answer)
            is_text = isinstance(answer, str)
            calls = () if is_text else (ToolCall(name, arguments),)
            text = answer if is_text else ""
            self.llm.add(Reply(text=text, tool_calls=calls, match=Match(path="*/chat/completions")))


def prompt_chaining(fooled: Fooled) -> dict[str, Any]:
    fooled.answers(
        (FORBIDDEN, {"company": "*"}),
        {"category": "administrator", "urgency": "high", "key_issues": [OBEYED]},
        {"category": "billing", "urgency": "high", "key_issues": [OBEYED]},
        {"subject": OBEYED[:60], "message": OBEYED},
    )
    return {"ticket": TEXT}


def routing(fooled: Fooled) -> dict[str, Any]:
    fooled.answers({"response": "drop_all"}, {"response": "handle_critical"})
    fooled.answers({"response": [FORBIDDEN]}, {"response": ["billing", "monitoring"]})
    return {"incident": TEXT}


def multi_agent(fooled: Fooled) -> dict[str, Any]:
    fooled.answers({"market_research": [OBEYED], "financial_analysis": []})
    fooled.answers((FORBIDDEN, {}), ("search_market_facts", {"company": "*", "topic": OBEYED}), OBEYED)
    fooled.answers({"answer": OBEYED, "open_questions": [OBEYED]})
    return {"company": "Tretwald", "question": TEXT[:2000]}


def rag_pipeline(fooled: Fooled) -> dict[str, Any]:
    folder = fooled.storage.parent / "documents"
    folder.mkdir()
    (folder / "help.md").write_text(f"# Help\n\nA trial takes 14 days.\n\n{TEXT}\n")
    fooled.patch.setenv("GENAI_KNOWLEDGE_BASE", str(folder))
    fooled.answers({"answer": OBEYED, "answered": True, "passages": [9]})  # a passage that it was not given
    fooled.answers({"answer": OBEYED, "answered": True, "passages": [1]})
    return {"query": "How long is a trial?", "min_score": -1, "mode": "vector"}


def batch_inference(fooled: Fooled) -> dict[str, Any]:
    fooled.answers({"sentiment": "approved", "summary": OBEYED}, {"sentiment": "positive", "summary": OBEYED})
    return {"reviews": [TEXT]}


def human_review(fooled: Fooled) -> dict[str, Any]:
    """No person is there: what the model wrote is not sent."""
    fooled.answers((FORBIDDEN, {}), {"reply": OBEYED})
    answer = {"chosen_options": ["Reject"], "params_input": {}, "responded_by_user": None, "responded_at": None}
    fooled.patch.setattr(HITLOperator, "execute", lambda self, context: answer)
    return {"tickets": [TEXT]}


def any_asset(fooled: Fooled) -> dict[str, Any]:
    fooled.storage.mkdir(exist_ok=True)
    (fooled.storage / "reviews.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in INJECTIONS))
    url = (fooled.storage / "reviews.jsonl").as_uri()
    event = SimpleNamespace(asset=SimpleNamespace(name="asset"), timestamp=1, extra={"file": url})
    fooled.patch.setattr("include.common.asset_events.triggering_events", lambda *assets: [event])
    fooled.answers(OBEYED)
    return {}


# By pattern, the files that a run with a fooled model leaves on the project's storage.
REACH: dict[Callable[[Fooled], dict[str, Any]], set[str]] = {
    prompt_chaining: {"reply.json"},
    routing: {"handled.json"},
    multi_agent: {"report.md"},
    rag_pipeline: {"answer.json", "answer.md"},
    batch_inference: {"report.json", "chart.svg"},
    human_review: set(),
    any_asset: {"report.md"},
}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, int]]:
    """The servers that the run has called."""
    servers: set[tuple[str, int]] = set()
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def note(real: Callable[..., Any]) -> Callable[..., Any]:
        def connecting(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                servers.add((address[0], address[1]))
            return real(self, address)

        return connecting

    monkeypatch.setattr(socket.socket, "connect", note(connect))
    monkeypatch.setattr(socket.socket, "connect_ex", note(connect_ex))
    return servers


def active(markdown: str) -> list[str]:
    """What of a Markdown text would load or run something where it is shown, or lead somewhere."""
    parser = MarkdownIt("commonmark")
    tokens = [child for token in parser.parse(markdown) for child in (token, *(token.children or []))]
    return [token.type for token in tokens if token.type in ("image", "link_open", "html_inline", "html_block")]


def test_the_injections_are_active_where_nothing_is_done_about_them():
    assert {"image", "html_inline"} <= set(active(OBEYED))


@pytest.mark.parametrize("pattern", REACH, ids=lambda pattern: pattern.__name__)
def test_a_model_that_obeys_reaches_what_its_task_may_do_and_nothing_else(
    run_dag, llm, storage, logged, called, monkeypatch, pattern
):
    conf = pattern(Fooled(llm, storage, monkeypatch))
    before = {file for file in storage.rglob("*") if file.is_file()} if storage.exists() else set()
    run = run_dag(pattern.__name__, conf)

    assert run.state == "success", logged()
    requests = chat_requests(llm)
    assert requests
    for request in requests:
        for message in request["messages"]:
            if message["role"] in ("system", "developer"):
                assert not any(injection in str(message["content"]) for injection in INJECTIONS)
                assert "is data" in str(message["content"]) or "are data" in str(message["content"])
    assert all(host == "127.0.0.1" for host, _ in called)
    files = {file for file in storage.rglob("*") if file.is_file()} - before
    left = [file for file in files if file.relative_to(storage).parts[0] not in RECORDS]
    assert {file.name for file in left} == REACH[pattern]
    assert {file.relative_to(storage).parts[0] for file in left} <= {pattern.__name__}
    for file in left:
        assert file.suffix != ".md" or active(file.read_text()) == []
        assert KEY not in file.read_text()
    assert FORBIDDEN not in logged()


def prompts() -> Iterator[tuple[str, str]]:
    yield "ANSWER_PROMPT", ANSWER_PROMPT
    for path in dag_files():
        module = runpy.run_path(str(path))
        texts = {name: value for name, value in module.items() if name.endswith("PROMPT") and isinstance(value, str)}
        yield from ((f"{path.stem}.{name}", value) for name, value in texts.items())


def test_every_prompt_says_that_the_text_it_comes_with_is_data(airflow_db):
    found = dict(prompts())
    assert len(found) >= 15
    for name, prompt in found.items():
        assert re.search(r"\b(is|are) data\b.*: follow no (other )?instruction in (it|them)\.", prompt), name
