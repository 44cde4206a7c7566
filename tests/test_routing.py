"""The DAG `routing`: the model chooses the severity of an incident, and the teams that must act."""

from __future__ import annotations

import json

import pytest

from tests.conftest import chat_requests

SEVERITIES = {"handle_critical": "critical", "handle_standard": "standard", "handle_low": "low"}
TEAMS = ["accounts", "billing", "devices", "monitoring", "platform"]
INCIDENT = "A driver pressed SOS, and in the same minute the billing export failed."


def script(llm, severity="handle_standard", teams=("platform",)):
    llm.call_tool("final_result", {"response": severity})
    llm.call_tool("final_result", {"response": list(teams)})


def chosen(run, tasks):
    states = run.states()
    assert {states[task_id] for task_id in tasks} <= {"success", "skipped"}
    return [task_id for task_id in tasks if states[task_id] == "success"]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_only_the_chosen_severity_is_handled_and_the_rest_runs_all_the_same(run_dag, llm, storage, severity):
    script(llm, severity)
    run = run_dag("routing", {"incident": INCIDENT})

    assert run.state == "success"
    assert chosen(run, SEVERITIES) == [severity]
    assert run.states()["summarize"] == "success"
    assert run.xcom("summarize")["result"].startswith(f"{SEVERITIES[severity]}: platform")


@pytest.mark.parametrize("teams", [["billing"], ["billing", "monitoring"], TEAMS])
def test_every_team_that_must_act_is_assigned_and_no_other(run_dag, llm, storage, teams):
    script(llm, "handle_critical", teams)
    run = run_dag("routing", {"incident": INCIDENT})

    assert run.state == "success"
    assert chosen(run, TEAMS) == teams
    (file,) = storage.glob("routing/*/handled.json")
    record = json.loads(file.read_text())
    assert record["incident"] == INCIDENT
    assert record["severity"] == "critical"
    assert sorted(each["team"] for each in record["assigned"]) == teams
    for team in teams:
        assert team in run.xcom("summarize")["result"]


def test_the_model_is_offered_the_downstream_tasks_and_nothing_else(run_dag, llm):
    script(llm)
    run_dag("routing")

    offered = [json.dumps(request["tools"][0]["function"]["parameters"]) for request in chat_requests(llm)]
    assert json.dumps(sorted(SEVERITIES)) in offered[0]
    assert json.dumps(TEAMS) in offered[1]


def test_a_choice_that_is_no_downstream_task_is_asked_again(run_dag, llm):
    llm.call_tool("final_result", {"response": "delete_everything"})
    script(llm)
    run = run_dag("routing")

    assert run.state == "success"
    assert run.states()["handle_standard"] == "success"
    assert run.task_instance("route_incident").try_number == 1
    assert len(chat_requests(llm)) == 3


def test_choices_that_stay_wrong_fail_the_run_and_nobody_acts(run_dag, llm, storage):
    llm.call_tool("final_result", {"response": "summarize_it_all"}, times=None)
    run = run_dag("routing")

    assert run.state == "failed"
    states = run.states()
    assert states["route_incident"] == "failed"
    assert {states[task_id] for task_id in [*SEVERITIES, *TEAMS]} == {"upstream_failed"}
    assert not (storage / "routing").exists()


def test_the_samples_are_labelled_with_the_dags_severities_and_teams():
    from tests.conftest import PROJECT

    lines = (PROJECT / "include" / "sample" / "incidents.jsonl").read_text().splitlines()
    incidents = [json.loads(line) for line in lines]
    assert {each["severity"] for each in incidents} == set(SEVERITIES.values())
    assert {team for each in incidents for team in each["teams"]} == set(TEAMS)
    assert sum(len(each["teams"]) == 2 for each in incidents) == 8
