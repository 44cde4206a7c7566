"""Nothing that a person wrote, a model answered or a key holder knows ends up where it can be read by others."""

from __future__ import annotations

import json
import logging

import pytest
from sqlalchemy import select

from tests.conftest import KEY
from tests.test_multi_agent import FINANCE
from tests.test_prompt_chaining import ANALYSIS, REPLY

ASKED = "marker-of-the-asker"
ANSWERED = "marker-of-the-model"


def run_prompt_chaining(run_dag, llm, reply=None):
    llm.call_tool("final_result", {**ANALYSIS, "key_issues": [ANSWERED]})
    llm.call_tool("final_result", reply or {**REPLY, "message": f"Dear customer, {ANSWERED}"})
    return run_dag("prompt_chaining", {"ticket": f"My vans are offline, {ASKED}."})


def run_multi_agent(run_dag, llm):
    _, tool, arguments = FINANCE
    assignment = f"{'x' * 60} {ANSWERED}"  # the first 60 characters are shown as the task's name
    llm.call_tool("final_result", {"market_research": [], "financial_analysis": [assignment]})
    llm.call_tool(tool, arguments).reply(f"It earns money, {ANSWERED}.")
    llm.call_tool("final_result", {"answer": f"A sound company, {ANSWERED}.", "open_questions": [ANSWERED]})
    return run_dag("multi_agent", {"company": "Tretwald", "question": f"Is it sound, {ASKED}?"})


def assert_really_captured(log):
    assert "Done. Returned value not shown" in log  # Airflow's own lines
    assert "Model gpt-6-luna answered in" in log  # ours


@pytest.mark.parametrize("run", [run_prompt_chaining, run_multi_agent])
def test_neither_prompt_nor_answer_nor_key_is_logged(run_dag, llm, logged, run):
    assert run(run_dag, llm).state == "success"

    log = logged()
    assert_really_captured(log)
    assert ASKED not in log
    assert ANSWERED not in log
    assert KEY not in log


def test_an_answer_that_stays_invalid_fails_the_task_without_being_logged(run_dag, llm, logged):
    llm.call_tool("final_result", {"category": ANSWERED, "urgency": 7, "key_issues": ANSWERED}, times=None)
    run = run_dag("prompt_chaining", {"ticket": f"My vans are offline, {ASKED}."})

    assert run.state == "failed"
    log = logged()
    assert "Model gpt-6-luna answered in" in log
    assert "Task failed with exception" in log
    assert ASKED not in log
    assert ANSWERED not in log


def test_prompt_and_answer_are_there_for_who_asks_for_debug_logs(run_dag, llm, caplog):
    with caplog.at_level(logging.DEBUG, logger="include.llm_model"):
        run_prompt_chaining(run_dag, llm)

    assert ASKED in caplog.text
    assert ANSWERED in caplog.text


@pytest.mark.parametrize("run", [run_prompt_chaining, run_multi_agent])
def test_the_key_is_in_no_xcom_no_rendered_field_and_no_serialized_dag(run_dag, llm, storage, run):
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    dag_run = run(run_dag, llm).run
    with create_session() as session:
        run_of = lambda model: select(model).where(model.run_id == dag_run.run_id)  # noqa: E731
        xcoms = [json.dumps(row.value) for row in session.scalars(run_of(XComModel))]
        fields = [json.dumps(row.rendered_fields) for row in session.scalars(run_of(RenderedTaskInstanceFields))]
        dags = [json.dumps(row.data) for row in session.scalars(select(SerializedDagModel))]
    files = [file.read_text() for file in storage.rglob("*") if file.is_file()]

    assert any(ANSWERED in xcom for xcom in xcoms)
    assert any("op_kwargs" in field for field in fields)
    assert any(dag_run.dag_id in dag for dag in dags)
    assert any(ANSWERED in file for file in files)
    for text in [*xcoms, *fields, *dags, *files]:
        assert KEY not in text
