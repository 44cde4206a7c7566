"""The DAG `multi_agent`: a plan, specialists with real tools, and a report."""

from __future__ import annotations

import json

import pytest

from tests.conftest import chat_requests
from tests.storages import on_storage

SYNTHESIS = {"answer": "The company grows and earns money since 2024.", "open_questions": ["Who leads it?"]}
QUESTION = "Is Tretwald growing in a healthy way?"
CONF = {"company": "Tretwald", "question": QUESTION}


def plan(llm, market_research=(), financial_analysis=()):
    llm.call_tool(
        "final_result",
        {"market_research": list(market_research), "financial_analysis": list(financial_analysis)},
    )


def report_of(storage):
    (file,) = storage.glob("multi_agent/*/report.md")
    return file.read_text()


def test_each_assignment_becomes_a_worker_that_is_named_by_its_number(run_dag, llm, storage):
    plan(llm, ["Who are the rivals?", "How large is the market?"], ["Is it profitable?"])
    llm.reply("A finding.", times=3)
    llm.call_tool("final_result", SYNTHESIS)
    run = run_dag("multi_agent", CONF)

    assert run.state == "success"
    names = {
        (ti.task_id, ti.map_index): ti.rendered_map_index for ti in run.run.get_task_instances() if ti.map_index >= 0
    }
    assert names == {
        ("research_market", 0): "assignment 1",
        ("research_market", 1): "assignment 2",
        ("analyze_finances", 0): "assignment 1",
    }
    prompts = [json.dumps(request["messages"]) for request in chat_requests(llm)[1:4]]
    for assignment in ("Who are the rivals?", "How large is the market?", "Is it profitable?"):
        assert sum(assignment in prompt for prompt in prompts) == 1
    assert all("Company: Tretwald" in prompt for prompt in prompts)


@on_storage("s3")
def test_the_report_holds_answer_findings_and_open_questions(run_dag, llm, storage):
    plan(llm, ["Who are the rivals?", "How large is the market?"], ["Is it profitable?"])
    for number in range(3):
        llm.reply(f"Finding number {number}.")
    llm.call_tool("final_result", SYNTHESIS)
    run = run_dag("multi_agent", CONF)

    rivals, market = (run.xcom("research_market", map_index=index) for index in range(2))
    profit = run.xcom("analyze_finances", map_index=0)
    assert len({rivals, market, profit}) == 3
    about = f"`{run.run.run_after.date()}` · `multi_agent` · `{run.run.run_id}` · `gpt-6-luna`"
    assert report_of(storage) == (
        f"# Tretwald\n\n{about}\n\n*{QUESTION}*\n\n{SYNTHESIS['answer']}\n\n"
        f"## Market research\n\n**Who are the rivals?** {rivals}\n\n**How large is the market?** {market}\n\n"
        f"## Financial analysis\n\n**Is it profitable?** {profit}\n\n"
        "## Open questions\n\n- Who leads it?\n"
    )
    assert run.xcom("write_report")["result"] == f"Tretwald: {SYNTHESIS['answer']}"
    synthesis_prompt = json.dumps(chat_requests(llm)[-1]["messages"])
    assert all(finding in synthesis_prompt for finding in (rivals, market, profit, QUESTION))


RESEARCH = (
    {"market_research": ["Who are the rivals?"]},
    "search_market_facts",
    {"company": "Tretwald", "topic": "competition"},
)
FINANCE = ({"financial_analysis": ["Is it profitable?"]}, "financial_figures", {"company": "Tretwald"})


@pytest.mark.parametrize(("assigned", "tool", "arguments"), [RESEARCH, FINANCE], ids=["research", "finance"])
def test_an_agent_calls_its_tool_and_answers_from_the_tools_data(run_dag, llm, storage, assigned, tool, arguments):
    from include.sample import company_research

    plan(llm, **assigned)
    llm.call_tool(tool, arguments).reply("What the tool said, in short.")
    llm.call_tool("final_result", SYNTHESIS)
    run = run_dag("multi_agent", CONF)

    assert run.state == "success"
    _, first, second, _ = chat_requests(llm)
    assert [offered["function"]["name"] for offered in first["tools"]] == [tool]
    assert second["messages"][-1]["role"] == "tool"
    assert json.loads(second["messages"][-1]["content"]) == getattr(company_research, tool)(**arguments)
    assert "What the tool said, in short." in report_of(storage)


@pytest.mark.parametrize(
    ("assigned", "idle", "missing"),
    [(RESEARCH[0], "analyze_finances", "Financial analysis"), (FINANCE[0], "research_market", "Market research")],
    ids=["no finance", "no research"],
)
def test_a_specialist_without_assignments_is_skipped_and_the_report_comes(
    run_dag, llm, storage, assigned, idle, missing
):
    plan(llm, **assigned)
    llm.reply("The only finding.").call_tool("final_result", SYNTHESIS)
    run = run_dag("multi_agent", CONF)

    assert run.state == "success"
    assert run.states()[idle] == "skipped"
    assert "The only finding." in report_of(storage)
    assert f"## {missing}\n\n**" not in report_of(storage)


def test_an_assignment_that_the_plan_repeats_is_worked_on_once(run_dag, llm, storage):
    plan(llm, ["Who are the rivals?", "Who are the rivals?"])
    llm.reply("The only finding.").call_tool("final_result", SYNTHESIS)
    run = run_dag("multi_agent", CONF)

    assert run.state == "success"
    assert len(chat_requests(llm)) == 3
    assert report_of(storage).count("Who are the rivals?") == 1


def test_an_unknown_company_is_answered_with_the_known_ones_and_the_agent_recovers(run_dag, llm, storage):
    from include.sample.data import companies

    plan(llm, financial_analysis=["Is it profitable?"])
    llm.call_tool("financial_figures", {"company": "Tretwald GmbH"})
    llm.call_tool("financial_figures", {"company": "Tretwald"}).reply("It earns money.")
    llm.call_tool("final_result", SYNTHESIS)
    run = run_dag("multi_agent", CONF)

    assert run.state == "success"
    assert run.task_instance("analyze_finances", 0).try_number == 1
    _, _, corrected, answered, _ = chat_requests(llm)
    told = corrected["messages"][-1]["content"]
    assert [name for name in companies() if f"'{name}'" in told] == list(companies())
    assert "million EUR" in answered["messages"][-1]["content"]


def test_the_companies_to_choose_from_are_those_of_the_sample_data(load_dag):
    from include.sample.data import companies

    assert load_dag("multi_agent").params.get_param("company").schema["enum"] == list(companies())


def test_a_company_that_is_not_on_the_list_is_refused_before_the_run(run_dag, llm):
    from airflow.providers.common.compat.sdk import ParamValidationError

    with pytest.raises(ParamValidationError, match="company"):
        run_dag("multi_agent", {"company": "Acme"})
    assert llm.requests == []
