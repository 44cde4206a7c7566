"""The DAG `evaluator_optimizer`: it rewrites until a draft passes, and a person decides on what does not."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from airflow.providers.standard.operators.hitl import HITLOperator

from tests.conftest import chat_requests

GOOD = "We are sorry. Please send us the serial number of each tracker."
BAD = "We are sorry to hear that, and look into it."


def rounds(llm: Any, *drafts: tuple[str, bool]) -> None:
    """What the writer and the judge answer in each round."""
    for reply, passed in drafts:
        llm.call_tool("final_result", {"reply": reply})
        llm.call_tool("final_result", {"reason": f"What is said of: {reply}", "passed": passed})


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A person who approves what they are shown, after an edit."""
    seen: list[Any] = []

    def execute(self: Any, context: Any) -> dict[str, Any]:
        seen.append(self.params.dump()["reply"])
        who = {"responded_by_user": {"id": "7", "name": "Ada"}, "responded_at": "2026-11-26T00:00:00+00:00"}
        return {"chosen_options": ["Approve"], "params_input": {"reply": "Edited."}, **who}

    monkeypatch.setattr(HITLOperator, "execute", execute)
    return seen


def sent(storage: Any) -> dict[str, Any]:
    (file,) = storage.glob("evaluator_optimizer/*/reply.json")
    return dict(json.loads(file.read_text()))


def test_a_draft_that_passes_is_sent_and_no_further_round_is_paid(run_dag, llm, storage, person):
    rounds(llm, (GOOD, True))
    run = run_dag("evaluator_optimizer")
    assert run.state == "success"
    assert sent(storage) == {"reply": GOOD, "round": 1, "passed": True}
    states = run.states()
    assert (states["round_2.write"], states["round_3.write"], states["review"]) == ("skipped",) * 3
    assert len(chat_requests(llm)) == 2
    assert not person


def test_what_is_wrong_with_a_draft_goes_back_to_the_writer(run_dag, llm, storage, person):
    rounds(llm, (BAD, False), (GOOD, True))
    run = run_dag("evaluator_optimizer")
    assert sent(storage) == {"reply": GOOD, "round": 2, "passed": True}
    rewriting = json.dumps(chat_requests(llm)[2]["messages"])
    assert BAD in rewriting
    assert "It does not say: serial number." in rewriting
    assert f"What is said of: {BAD}" in rewriting
    assert run.states()["round_3.go_on"] == "success"
    assert run.states()["round_3.write"] == "skipped"


def test_words_that_must_be_said_are_looked_up_whatever_the_judge_says(run_dag, llm, storage, person):
    rounds(llm, (BAD, True), (GOOD, True))
    run_dag("evaluator_optimizer")
    assert sent(storage)["round"] == 2


def test_what_never_passes_goes_to_a_person_who_may_edit_the_best(run_dag, llm, storage, person):
    rounds(llm, (BAD, False), (GOOD, False), (BAD + " Again.", False))
    run = run_dag("evaluator_optimizer")
    assert run.state == "success"
    assert person == [GOOD]
    assert sent(storage) == {"reply": "Edited.", "round": 2, "passed": False}
    assert "not passed in 3 rounds" in run.xcom("report")["result"]


@pytest.mark.parametrize(("budget", "model"), [(0, "gpt-6-luna"), (1, "a-model-without-a-price")])
def test_no_round_begins_without_money_for_it(budget, model, run_dag, llm, storage, person, monkeypatch):
    connection = json.loads(os.environ["AIRFLOW_CONN_PYDANTICAI_DEFAULT"])
    connection["extra"]["model"] = f"openai-chat:{model}"
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", json.dumps(connection))
    rounds(llm, (BAD, False))
    run_dag("evaluator_optimizer", {"budget_usd": budget})
    assert len(chat_requests(llm)) == 2
    assert person == [BAD]
