"""The DAG `evaluate_prompts` and `make evaluate`: what is measured is what runs, and a loss is refused."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowSkipException
from airflow.providers.standard.operators.hitl import HITLOperator

from include.evaluation.accepting import accept, pass_gate, why_not
from include.evaluation.agreement import Agreement, measure_agreement
from include.evaluation.answering import AT_ONCE, Settings, evaluate
from include.evaluation.cases import read_cases
from include.evaluation.report import Compared, markdown
from include.evaluation.results import Result, Trial, accepted_path, read_accepted, result_path, write_result
from include.evaluation.scorers import Asked, Scored
from include.evaluation.subjects import Subject, load_task, plain
from include.evaluation.verdicts import judge_change
from include.sample.evaluation import CASES
from include.subjects import subjects
from tests.conftest import PROJECT, dag_file, template_dags
from tests.scripted_model import CALL_USD
from tests.test_ledger import records

SUBJECTS = {subject.name: subject for subject in subjects(CASES)}
DAGS = PROJECT / "dags"
# The share of cases that a prompt with these words in it gets right.
QUALITY = {"sentiment of": 0.8, "sentiment WORSE of": 0.5, "sentiment BETTER of": 0.97}
CONF = {"subjects": ["sentiment"], "limit": 60}
PERSON = {"id": "7", "name": "Ada"}


@pytest.fixture
def labelled(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripted model, which knows the labels of the reviews, and whose quality depends on the prompt."""
    monkeypatch.setenv("AIRFLOW_HOME", os.environ["AIRFLOW_HOME"])  # `make evaluate` sets it
    labels = {case.input: case.expected for case in read_cases(CASES / "reviews.jsonl")}
    model.script(labels=labels, quality=QUALITY)
    return model


@pytest.fixture
def prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Change the prompt of the DAG `batch_inference`."""
    folder = tmp_path / "dags"
    folder.mkdir()
    file, find = dag_file("batch_inference"), Subject.file

    def change(word: str) -> None:
        code = file.read_text()
        changed = code.replace("Classify the sentiment of", f"Classify the sentiment{word} of")
        assert changed.count(f"sentiment{word} of") == 1
        (folder / file.name).write_text(changed)

    monkeypatch.setattr(Subject, "file", lambda self, dags: find(self, folder) or find(self, dags))
    return change


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What a person was shown, who accepts it."""
    seen: list[dict[str, str]] = []

    def execute(self: Any, context: Any) -> dict[str, Any]:
        seen.append({"subject": self.subject, "body": self.body})
        at = f"2026-11-26T00:00:{len(seen):02}+00:00"
        return {"chosen_options": ["Accept"], "params_input": {}, "responded_by_user": PERSON, "responded_at": at}

    monkeypatch.setattr(HITLOperator, "execute", execute)
    return seen


@pytest.mark.needs_dags("evaluate_prompts", "batch_inference")
def test_a_worse_prompt_is_refused_and_a_better_one_is_accepted(run_dag, labelled, prompt, person, storage):
    run = run_dag("evaluate_prompts", CONF)
    assert run.state == "success"
    assert "sentiment: nothing to compare with" in run.xcom("report")["result"]
    first = read_accepted("sentiment")
    assert 0.7 < first.passed.value < 0.9
    assert {line.prompt for record in records() for line in record.lines} == {first.version}
    assert [each["subject"] for each in person] == ["Accept this prompt and model for sentiment?"]

    prompt(" WORSE")
    run = run_dag("evaluate_prompts", CONF)
    assert run.state == "failed"
    assert run.states()["change.gate[0]"] == "failed"
    assert "sentiment: worse" in run.xcom("report")["result"]
    assert read_accepted("sentiment") == first
    assert len(person) == 1, "nobody is asked"
    report = Path(run.xcom("report")["artifacts"].removeprefix("file://")) / "report.md"
    assert "| input | expected | now | accepted |" in report.read_text()

    prompt(" BETTER")
    run = run_dag("evaluate_prompts", CONF)
    assert run.state == "success"
    assert "sentiment: better" in run.xcom("report")["result"]
    assert "Difference +" in person[-1]["body"]
    better = read_accepted("sentiment")
    assert better.passed.value > 0.9
    assert better.version != first.version


FOUND = {"subject": "sentiment", "line": "sentiment: ...", "is_new": True, "before": None, "report": "report.md"}


@pytest.mark.parametrize(
    ("found", "ends"),
    [
        ({"outcome": "worse"}, AirflowFailException),
        ({"outcome": "worse", "is_new": False}, AirflowFailException),
        ({"outcome": "too few cases to tell"}, AirflowSkipException),
        ({"outcome": "incomplete"}, AirflowSkipException),
        ({"outcome": "no significant difference", "is_new": False}, AirflowSkipException),
    ],
    ids=str,
)
def test_nobody_is_asked_about_what_got_worse_or_says_nothing_or_is_accepted_already(found, ends):
    with pytest.raises(ends, match="sentiment"):
        pass_gate(FOUND | found)


def test_a_rejected_result_and_one_compared_with_an_outdated_one_are_not_accepted(labelled):
    result = ask("sentiment", limit=2)
    write_result(result_path("a run", "sentiment"), result)
    decision = {"responded_by_user": PERSON, "responded_at": "2026-11-26T00:00:00Z"}
    with pytest.raises(AirflowSkipException, match="rejected"):
        accept("a run", FOUND, decision | {"chosen_options": ["Reject"]})
    assert read_accepted("sentiment") is None
    for _ in range(2):  # a retry, too
        event = accept("a run", FOUND, decision | {"chosen_options": ["Accept"]})
        assert (event["accepted_by"], event["before"]) == ("Ada", None)
    later = decision | {"chosen_options": ["Accept"], "responded_at": "2026-11-26T00:00:01Z"}
    with pytest.raises(AirflowFailException, match="another result was accepted since the comparison"):
        accept("a run", FOUND, later)
    assert accept("a run", FOUND | {"before": result.at.isoformat()}, later)["before"]["model"] == result.model


@pytest.mark.one_stack
@pytest.mark.needs_dags("evaluate_prompts", "batch_inference")
def test_with_twelve_cases_nothing_is_passed_and_nobody_is_asked(run_dag, labelled, person):
    run = run_dag("evaluate_prompts", CONF | {"limit": 12})
    assert run.state == "success"
    assert "sentiment: too few cases to tell (12 cases; 50 are needed)" in run.xcom("report")["result"]
    assert run.states()["change.gate[0]"] == "skipped"
    assert not person
    assert read_accepted("sentiment") is None


@pytest.mark.one_stack
@pytest.mark.needs_dags("evaluate_prompts", "batch_inference", "on_demand_inference")
def test_a_subject_that_could_not_be_evaluated_is_incomplete_and_the_others_are_reported(run_dag, labelled, person):
    (case,) = SUBJECTS["triage"].read_cases(1)
    labelled.script(faults={case.input: 500})
    run = run_dag("evaluate_prompts", {"subjects": ["sentiment", "triage"], "limit": 1})
    assert run.state == "failed"
    assert sorted(run.states()[f"change.gate[{n}]"] for n in range(2)) == ["failed", "skipped"]
    assert not person
    result = run.xcom("report")["result"]
    assert "triage: incomplete (not evaluated)" in result
    assert "sentiment: too few cases to tell" in result


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_subject_asks_what_its_task_asks(name, airflow_db, monkeypatch):
    subject = SUBJECTS[name]
    file = dag_file(subject.dag_id)
    task = load_task(file, subject.dag_id, subject.task_id)
    (case, *_) = subject.read_cases()
    asked = [Asked({"query": case.input}, {"passages": [{"text": "A text."}]})] if name == "answers" else None
    (given,) = asked or subject.ask([case.input])
    text = plain(task.prompt(given))
    said = case.input if isinstance(case.input, str) else list(case.input.values())[-1]
    assert said in text
    assert task.conn_id == "pydanticai_default"
    version = asyncio.run(task.version(task.prompt(given)))
    assert version == asyncio.run(load_task(file, subject.dag_id, subject.task_id).version(task.prompt(given)))


@pytest.mark.needs_dags("batch_inference")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Classify the sentiment of", "Say the sentiment of"),
        ("balanced, or facts only", "neither"),
        ("max_length=200", "max_length=100"),
    ],
    ids=["prompt", "description", "schema"],
)
def test_a_change_of_prompt_or_form_is_another_version(old, new, tmp_path, airflow_db):
    file = dag_file("batch_inference")
    changed = tmp_path / file.name
    changed.write_text(file.read_text().replace(old, new))
    assert changed.read_text() != file.read_text()
    versions = []
    for each in (file, changed):
        task = load_task(each, "batch_inference", "analyze")
        versions.append(asyncio.run(task.version("A review.")))
    assert versions[0] != versions[1]


def ask(name: str, run_id: str = "a run", **settings: Any) -> Any:
    return asyncio.run(evaluate(SUBJECTS[name], DAGS, run_id, Settings(**settings)))


@pytest.mark.needs_dags("batch_inference")
def test_a_retry_pays_for_no_answer_twice(labelled):
    cases = SUBJECTS["sentiment"].read_cases(20)
    labels = {case.input: case.expected for case in cases}
    labelled.script(labels=labels, quality=QUALITY, faults={cases[9].input: 500})
    with pytest.raises(AirflowException):
        ask("sentiment", limit=20)
    before = labelled.answered()
    assert before
    labelled.script(labels=labels, quality=QUALITY)
    result = ask("sentiment", limit=20)
    assert not before.keys() & labelled.answered().keys()
    assert before.keys() | labelled.answered().keys() == labels.keys()
    assert result.cost_usd == result.paid_usd == pytest.approx(20 * CALL_USD), "the tries of a run have one budget"
    assert (result.answers, result.reused) == (20, 0)


@pytest.mark.one_stack
@pytest.mark.needs_dags("batch_inference")
def test_a_budget_is_kept_and_what_was_answered_within_it_is_kept_too(labelled):
    budget = {"limit": 60, "budget_usd": 10 * CALL_USD}
    with pytest.raises(AirflowFailException, match="budget is used up"):
        ask("sentiment", **budget)
    answered = labelled.answered().total()
    assert 10 <= answered <= 10 + AT_ONCE
    with pytest.raises(AirflowFailException, match="budget is used up"):
        ask("sentiment", **budget)
    assert labelled.answered().total() <= answered + AT_ONCE, "a retry has no budget of its own"
    answered = labelled.answered().total()
    with pytest.raises(AirflowFailException, match="budget is used up"):
        ask("sentiment", run_id="the next run", **budget)
    assert labelled.answered().total() >= answered + 10, "what was paid before counts for nothing in another run"
    result = ask("sentiment", run_id="the last run", limit=60)
    assert labelled.answered().total() == 60
    assert result.reused > 20
    assert result.paid_usd == pytest.approx((60 - result.reused) * CALL_USD)
    assert result.cost_usd == pytest.approx(60 * CALL_USD)


@pytest.mark.needs_dags("batch_inference")
def test_what_another_run_has_paid_is_reused_unless_it_is_to_be_asked_anew(labelled):
    first = ask("sentiment", limit=12)
    again = ask("sentiment", run_id="another run", limit=12)
    assert labelled.answered().total() == 12
    assert (again.answers, again.reused, again.paid_usd) == (12, 12, 0)
    assert again.cost_usd == pytest.approx(12 * CALL_USD), "what the answers are worth"
    assert again.trials == first.trials, "the seconds are those of the call"
    more = ask("sentiment", run_id="another run", limit=14)
    assert more.answers - more.reused == labelled.answered().total() - 12
    fresh = ask("sentiment", run_id="a fresh run", limit=12, reuse_days=None)
    assert fresh.reused == 0
    asked = labelled.answered().total()
    assert ask("sentiment", run_id="a fresh run", limit=12, reuse_days=None).paid_usd == fresh.paid_usd
    assert labelled.answered().total() == asked, "its retry pays nothing twice"
    ask("sentiment", run_id="a later run", limit=12, reuse_days=1e-9)
    assert labelled.answered().total() == asked + 12, "older answers are not reused"


@pytest.mark.needs_dags("batch_inference")
def test_each_trial_of_a_case_is_an_answer_of_its_own_also_where_answers_are_reused(labelled):
    ask("sentiment", limit=4)
    assert set(labelled.answered().values()) == {1}
    three = ask("sentiment", run_id="another run", limit=4, trials=3)
    assert set(labelled.answered().values()) == {3}
    assert (three.answers, three.reused) == (12, 4)
    again = ask("sentiment", run_id="a third run", limit=4, trials=3)
    assert (again.answers, again.reused) == (12, 12)
    assert again.trials == three.trials


@pytest.mark.needs_dags("batch_inference")
def test_another_scorer_costs_nothing(labelled, monkeypatch):
    ask("sentiment", limit=4)
    monkeypatch.setitem(SUBJECTS, "sentiment", replace(SUBJECTS["sentiment"], scorer=Scored()))
    result = ask("sentiment", run_id="another run", limit=4)
    assert result.metrics == {"answered": 1.0}
    assert labelled.answered().total() == 4


@pytest.mark.needs_dags("batch_inference")
def test_a_budget_is_refused_before_anything_is_paid_if_no_price_is_known(labelled, monkeypatch):
    connection = json.loads(os.environ["AIRFLOW_CONN_PYDANTICAI_DEFAULT"])
    extra = {"model": "openai-chat:made-up"}
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", json.dumps({**connection, "extra": extra}))
    with pytest.raises(AirflowFailException, match="The price of 'openai-chat:made-up' is not known"):
        ask("sentiment", limit=2, budget_usd=1)
    assert not labelled.answered()


@pytest.mark.needs_dags("batch_inference")
def test_what_the_provider_refuses_is_a_failure_of_its_class_and_loses_no_other(labelled):
    cases = SUBJECTS["sentiment"].read_cases(12)
    labelled.script(
        labels={case.input: case.expected for case in cases}, quality={"sentiment": 1.0}, faults={cases[3].input: 400}
    )
    result = ask("sentiment", limit=12)
    assert result.failures == {"refused": 1}
    assert result.passed.value == pytest.approx(11 / 12)


@pytest.mark.needs_dags("multi_agent")
def test_the_calls_of_an_agents_tools_are_scored(llm):
    (case,) = SUBJECTS["tool_calls"].read_cases(1)
    (call,) = case.expected["calls"]
    llm.call_tool(call["tool"], {key: value for key, value in call.items() if key != "tool"})
    llm.reply(f"The answer is {case.expected['facts'][0][0]}.")
    result = ask("tool_calls", limit=1)
    (trial,) = result.all_trials
    assert trial.metrics == {"calls, precision": 1.0, "calls, recall": 1.0, "facts": 1.0}


@pytest.mark.needs_dags("routing")
def test_branches_are_scored_by_the_tasks_that_they_lead_to(llm):
    (case,) = SUBJECTS["severity"].read_cases(1)
    llm.call_tool("final_result", {"response": f"handle_{case.expected['severity']}"})
    assert ask("severity", limit=1).passed.value == 1
    (case,) = SUBJECTS["teams"].read_cases(1)
    llm.call_tool("final_result", {"response": case.expected["teams"]})
    assert ask("teams", limit=1).passed.value == 1


@pytest.mark.needs_dags("prompt_chaining")
def test_a_judge_that_gives_no_judgement_is_a_missing_metric_and_not_the_answers_fault(llm):
    reply = {"message": "We look into it at once, sorry.", "next_steps": ["We call you."]}
    llm.call_tool("final_result", reply)
    for _ in range(2):  # the second about a labelled reply
        llm.call_tool("final_result", {"reason": "All points are met.", "passed": True})
    result = ask("replies", limit=1)
    (trial,) = result.all_trials
    assert trial.metrics == {"answered": 1.0, "judged": 1.0}
    assert (result.agreement.cases, result.answers) == (1, 3)
    compared = Compared(result, None, judge_change(result, None, 0.05, 0.1), [])
    assert f"agrees with {result.agreement.agreed} of 1 labels" in markdown([compared], 0.05)
    llm.call_tool("final_result", reply)
    llm.reply("I will not judge.", times=None)
    (trial,) = ask("replies", run_id="another run", limit=1, reuse_days=None).all_trials
    assert (trial.error, trial.metrics) == ("", {"answered": 1.0})


@pytest.mark.parametrize(
    ("subject", "says"),
    [
        ({"dag_id": "nothing"}, "there is no file nothing.py below"),
        ({"task_id": "nothing"}, "task 'nothing': there is no such task. There are: .*analyze"),
        ({"task_id": "report"}, "task 'report': it asks no model"),
    ],
)
@pytest.mark.needs_dags("batch_inference")
def test_a_subject_that_is_not_there_is_named(subject, says, model):
    with pytest.raises(AirflowFailException, match=says):
        asyncio.run(evaluate(replace(SUBJECTS["sentiment"], **subject), DAGS, "a run", Settings()))


@pytest.mark.one_stack
@pytest.mark.needs_dags("batch_inference")
def test_the_shell_says_by_its_status_what_the_gate_says(labelled, prompt, tmp_path, capsys):
    from local.evaluate import NEITHER, PASSED, WORSE, main

    summary = tmp_path / "summary.md"
    options = ["--subjects", "sentiment", "--summary", str(summary), "--home", str(tmp_path / "home")]
    assert main([*options, "--limit", "12"]) == NEITHER
    assert "too few cases to tell" in summary.read_text()
    given = [*options, "--limit", "60"]
    assert main(given) == NEITHER, "nothing was accepted yet"
    assert main([*given, "--accept"]) == PASSED
    asked = labelled.answered().total()
    assert main(given) == PASSED
    assert labelled.answered().total() == asked, "nothing has changed, so nothing is paid"
    assert "| $0 | 60 of 60 |" in capsys.readouterr().out
    assert main([*given, "--fresh"]) == PASSED
    assert labelled.answered().total() == asked + 60
    prompt(" WORSE")
    assert main(given) == WORSE
    assert "| **worse** |" in summary.read_text()
    assert "**worse**" in capsys.readouterr().out
    accepted = read_accepted("sentiment")
    assert main([*given, "--accept"]) == WORSE
    said = capsys.readouterr().err
    assert "Not accepted: sentiment is worse than the accepted result of " in said
    assert f"delete the files in {accepted_path('sentiment')} first" in said
    assert main([*options, "--limit", "12", "--accept"]) == NEITHER
    assert "Not accepted: sentiment has too few cases to compare with" in capsys.readouterr().err
    assert read_accepted("sentiment") == accepted
    prompt(" BETTER")
    assert main([*given, "--accept"]) == PASSED
    assert "Accepted: sentiment: better" in capsys.readouterr().err


def test_an_incomplete_result_is_not_accepted_and_its_missing_metric_is_named():
    trials = {"one": [Trial(metrics={"a": 1.0, "b": 1.0})], "two": [Trial(metrics={"a": 1.0})]}
    now = datetime(2026, 11, 26, tzinfo=UTC)
    result = Result(subject="replies", version="prompt", model="model", run_id="run", at=now, trials=trials)
    compared = Compared(result, None, judge_change(result, None, 0.05, 0.1), [])
    assert why_not(compared) == "replies is incomplete: answers lack the metric b. Evaluate it again."


def test_a_judges_agreement_is_that_of_its_judgements_with_the_labels():
    cases = read_cases(CASES / "replies.jsonl")
    labels = {case.input["reply"]: case.expected["passed"] for case in cases}

    async def judge(ticket: str, reply: str) -> bool | None:
        return None if reply == cases[0].input["reply"] else labels[reply]

    assert asyncio.run(measure_agreement("judge", cases, judge)) == Agreement(
        model="judge", cases=40, agreed=39, most=20
    )


@pytest.mark.parametrize(("agreed", "is_enough"), [(40, True), (33, True), (27, False), (20, False)])
def test_a_judge_that_is_not_shown_to_be_better_than_one_that_always_says_the_same_is_named(agreed, is_enough):
    line = Agreement(model="judge", cases=40, agreed=agreed, most=21).line()
    assert f"agrees with {agreed} of 40 labels: {100 * agreed / 40:.0f} % [" in line
    assert ("Too few labels, or too little agreement" in line) != is_enough


WRONG_INPUTS = [
    (["--subjects", "nothing"], "There is no subject 'nothing'. There are: ticket_analysis, replies, "),
    (["--model", "candidat"], "There is no connection 'candidat'."),
    (["--model", "openai-chat:"], "'openai-chat:' is not <provider>:<name>"),
    (["--model", "gpt 6"], "'gpt 6' is not <provider>:<name>, such as openai-chat:gpt-6-luna, nor a connection's id."),
    (["--judge", "nobody"], "There is no connection 'nobody'."),
    (["--summary", "."], "Is a directory"),
]


@pytest.mark.needs_dags("batch_inference")
@pytest.mark.parametrize(("options", "says"), WRONG_INPUTS, ids=lambda value: "")
def test_a_wrong_input_of_the_shell_is_one_line_before_anything_is_paid(options, says, labelled, tmp_path, monkeypatch):
    from local.evaluate import main
    from local.processes import StackError

    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")  # which would be asked instead of a connection that is not there
    with pytest.raises(StackError) as caught:
        main(["--subjects", "sentiment", "--limit", "2", "--home", str(tmp_path), *options])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not labelled.answered()


@pytest.mark.needs_dags("batch_inference")
def test_a_model_that_cannot_be_built_is_one_line(labelled, tmp_path, capsys, monkeypatch):
    from local.evaluate import MODEL_CONN_ID, WORSE, main

    given = ["--subjects", "sentiment", "--limit", "2", "--home", str(tmp_path), "--model", "nobody:gpt-6"]
    monkeypatch.setenv(f"AIRFLOW_CONN_{MODEL_CONN_ID.upper()}", "{}")
    assert main(given) == WORSE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sentiment was not evaluated: Connection 'evaluated_model' names the model 'nobody:gpt-6'")


def test_the_embedded_model_does_not_answer_in_the_name_of_another(airflow_db, monkeypatch):
    from local.environment import CHAT_MODEL, model_connection
    from local.evaluate import MODEL_CONN_ID, connection_of

    embedded = model_connection("http://127.0.0.1:1/v1", f"openai-chat:{CHAT_MODEL}")
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", embedded)
    monkeypatch.setenv(f"AIRFLOW_CONN_{MODEL_CONN_ID.upper()}", "{}")
    assert connection_of("openai-chat:gpt-6-luna") == MODEL_CONN_ID
    assert "host" not in json.loads(os.environ[f"AIRFLOW_CONN_{MODEL_CONN_ID.upper()}"])


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "x", "1.5", "100001"])
def test_a_limit_that_is_none_is_refused_and_not_taken_for_all_cases(value, capsys):
    from local.evaluate import parsed

    with pytest.raises(SystemExit, match="2"):
        parsed([f"--limit={value}"])
    assert f"LIMIT={value!r}: it must be a whole number from 1 to 100000" in capsys.readouterr().err


@pytest.mark.needs_dags("batch_inference")
def test_the_shell_tries_another_model_at_the_same_provider(labelled, tmp_path, monkeypatch):
    from local.evaluate import main

    main(
        [
            "--subjects",
            "sentiment",
            "--limit",
            "2",
            "--model",
            "openai-chat:another",
            "--home",
            str(tmp_path),
            "--accept",
        ]
    )
    assert read_accepted("sentiment").model == "openai-chat:another"
    monkeypatch.delenv("AIRFLOW_CONN_EVALUATED_MODEL")


def test_every_dag_that_asks_a_model_in_a_task_can_be_a_subject():
    """So that a prompt is never measured as a copy: each subject names a DAG of the template."""
    assert {subject.dag_id for subject in SUBJECTS.values()} <= template_dags().keys()
