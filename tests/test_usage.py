"""The XCom `llm_usage`: what the model calls of each task instance used."""

from __future__ import annotations

import pytest

from tests.conftest import model_connection
from tests.test_multi_agent import CONF, FINANCE, SYNTHESIS, plan
from tests.test_prompt_chaining import ANALYSIS, REPLY, script


def answered_tokens(llm):
    """For each answered chat request, the prompt tokens as the server counts them."""
    from llmock.routers._chat import prompt_of

    return [prompt_of(request.body["messages"])[1] for request in llm.requests if request.status == 200]


def test_each_task_records_its_own_calls(run_dag, llm):
    script(llm)
    run = run_dag("prompt_chaining")

    for task_id, input_tokens in zip(("analyze_ticket", "write_reply"), answered_tokens(llm), strict=True):
        usage = run.xcom(task_id, "llm_usage")
        assert usage["model"] == "gpt-6-luna"
        assert usage["requests"] == 1
        assert usage["input_tokens"] == input_tokens > 0
        assert usage["output_tokens"] > 0
        assert usage["seconds"] > 0


def test_an_agents_usage_is_the_sum_over_all_its_requests(run_dag, llm):
    assigned, tool, arguments = FINANCE
    plan(llm, **assigned)
    llm.call_tool(tool, arguments).call_tool(tool, arguments).reply("It earns money.")
    llm.call_tool("final_result", SYNTHESIS)
    run = run_dag("multi_agent", CONF)

    usage = run.xcom("analyze_finances", "llm_usage", map_index=0)
    assert usage["requests"] == 3
    assert usage["input_tokens"] == sum(answered_tokens(llm)[1:4])
    assert run.xcom("synthesize", "llm_usage")["requests"] == 1


def test_each_mapped_task_instance_counts_for_itself(run_dag, llm):
    llm.call_tool("final_result", {"sentiment": "positive", "summary": "Fine."}, times=None)
    run = run_dag("batch_inference", {"reviews": ["Good.", "A longer review. " * 20]})

    short, long = (run.xcom("analyze", "llm_usage", map_index=n) for n in range(2))
    assert short["requests"] == long["requests"] == 1
    assert sorted([short["input_tokens"], long["input_tokens"]]) == sorted(answered_tokens(llm))
    assert long["input_tokens"] > short["input_tokens"]


def test_a_question_that_is_asked_again_counts_twice(run_dag, llm):
    llm.call_tool("final_result", {"category": "weather"})
    script(llm)
    run = run_dag("prompt_chaining")

    assert run.xcom("analyze_ticket", "llm_usage")["requests"] == 2


def test_a_retry_of_the_task_starts_from_zero(run_dag, llm):
    llm.call_tool("final_result", {"category": "weather"}, times=2)  # the task's first try: two requests
    llm.call_tool("final_result", ANALYSIS).call_tool("final_result", REPLY)
    run = run_dag("prompt_chaining")

    assert run.task_instance("analyze_ticket").try_number == 2
    assert run.xcom("analyze_ticket", "llm_usage")["requests"] == 1


@pytest.mark.parametrize(("model", "known"), [("gpt-4o-mini", True), ("a-model-of-ones-own", False)])
def test_the_cost_is_that_of_the_models_price_list_and_none_where_there_is_none(
    run_dag, llm, monkeypatch, model, known
):
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", model_connection(llm.base_url(), f"openai-chat:{model}"))
    llm.call_tool("final_result", {"category": "weather"})  # is asked again: the sum of two calls
    script(llm)
    usage = run_dag("prompt_chaining").xcom("analyze_ticket", "llm_usage")

    assert usage["model"] == model
    assert usage["requests"] == 2
    if known:  # 0.15 and 0.60 USD per million tokens
        expected = (0.15 * usage["input_tokens"] + 0.60 * usage["output_tokens"]) / 1e6
        assert usage["cost_usd"] == pytest.approx(expected)
    else:
        assert usage["cost_usd"] is None
