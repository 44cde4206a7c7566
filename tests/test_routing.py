"""The DAG `routing`: the model chooses the task that handles an incident."""

from __future__ import annotations

import json

import pytest

from tests.conftest import chat_requests

HANDLERS = {"handle_critical": "critical", "handle_standard": "standard", "handle_low": "low"}


@pytest.mark.parametrize("choice", HANDLERS)
def test_only_the_chosen_handler_runs_and_the_summary_says_so(run_dag, llm, storage, choice):
    llm.call_tool("final_result", {"response": choice})
    run = run_dag("routing", {"incident": "A geofence is drawn in the wrong colour."})

    assert run.state == "success"
    assert run.states() == {
        "route_incident": "success",
        "summarize": "success",
        **{handler: "success" if handler == choice else "skipped" for handler in HANDLERS},
    }
    assert run.xcom("summarize")["result"].startswith(f"{HANDLERS[choice]}: ")
    (file,) = storage.glob("incidents/*/handled.json")
    assert json.loads(file.read_text()) == {
        "incident": "A geofence is drawn in the wrong colour.",
        "handled": [run.xcom(choice)],
    }


def test_the_model_is_offered_the_downstream_tasks_and_nothing_else(run_dag, llm):
    llm.call_tool("final_result", {"response": "handle_low"})
    run_dag("routing")

    (request,) = chat_requests(llm)
    (tool,) = request["tools"]
    offered = json.dumps(tool["function"]["parameters"])
    assert [name for name in (*HANDLERS, "summarize", "route_incident") if f'"{name}"' in offered] == list(HANDLERS)


def test_a_choice_that_is_no_downstream_task_is_asked_again(run_dag, llm):
    llm.call_tool("final_result", {"response": "delete_everything"})
    llm.call_tool("final_result", {"response": "handle_standard"})
    run = run_dag("routing")

    assert run.state == "success"
    assert run.states()["handle_standard"] == "success"
    assert run.task_instance("route_incident").try_number == 1
    assert len(chat_requests(llm)) == 2


def test_choices_that_stay_wrong_fail_the_run_and_no_handler_runs(run_dag, llm, storage):
    llm.call_tool("final_result", {"response": "summarize_it_all"}, times=None)
    run = run_dag("routing")

    assert run.state == "failed"
    states = run.states()
    assert states["route_incident"] == "failed"
    assert {states[handler] for handler in HANDLERS} == {"upstream_failed"}
    assert not storage.exists()
