"""`include.evaluation` without a model: cases, scorers, statistics and verdicts."""

from __future__ import annotations

import json
import math
import random
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from hypothesis import example, given
from hypothesis import strategies as st

from include.common.markdown import as_markdown_cell, table
from include.evaluation.cases import Case, read_cases
from include.evaluation.results import Result, Trial
from include.evaluation.scorers import Asked, Given, SameFields, SameSet, ToolCalls, facts_in, precision_and_recall
from include.evaluation.statistics import (
    cases_needed,
    chance_of_gain,
    chance_of_loss,
    difference_interval,
    wilson,
)
from include.evaluation.verdicts import Outcome, judge_change
from include.sample.evaluation import CASES
from include.subjects import subjects

pytestmark = pytest.mark.one_stack

ALARMS = 0.05
LINE = '{"input": "a", "expected": {"x": 1}}'


# Cases


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: not valid JSON"),
        ('["input"]', "line 2: line: Input should be"),
        ('{"expected": {"x": 1}}', "line 2: input: Field required"),
        ('{"input": "b", "expected": {}}', "line 2: expected: Dictionary should have at least 1 item"),
        ('{"input": "b", "expected": {"y": 1}}', "line 2: expected.x: it is missing"),
        ('{"input": "b", "expected": {"x": 1}, "tag": []}', "line 2: tag: Extra inputs are not permitted"),
        ('{"input": "b", "input": "c", "expected": {"x": 1}}', "line 2: not valid JSON: an object has 'input' twice"),
        ('{"input": "a", "expected": {"x": 2}}', "line 2: input: the same as in line 1"),
    ],
)
def test_a_line_that_is_not_a_case_is_refused_by_file_line_and_field(line, says, tmp_path):
    file = tmp_path / "cases.jsonl"
    file.write_text(f"{LINE}\n{line}\n")
    with pytest.raises(AirflowFailException) as caught:
        read_cases(file, ["x"])
    assert f"{file}, {says}" in str(caught.value)


@pytest.mark.parametrize("content", [None, ""])
def test_no_cases_are_an_error(content, tmp_path):
    file = tmp_path / "cases.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(AirflowFailException, match=r"cases\.jsonl"):
        read_cases(file)


def test_a_case_with_another_label_is_another_case():
    assert Case(input="a", expected={"x": 1}).key != Case(input="a", expected={"x": 2}).key


@pytest.mark.parametrize("subject", subjects(CASES), ids=lambda subject: subject.name)
def test_the_bundled_cases_have_what_their_scorer_needs_and_are_enough_for_the_gate(subject):
    cases = subject.read_cases()
    assert len(cases) >= cases_needed(ALARMS / len(subjects(CASES)), subject.loss)
    assert {key for case in cases for key in case.expected} >= set(subject.scorer.fields)
    assert len(subject.read_cases(12)) == 12


@pytest.mark.parametrize("name", ["tickets", "messages", "incidents", "answers", "plans", "tool_calls", "replies"])
def test_some_bundled_cases_are_hostile_and_some_in_other_languages(name):
    tags = [tag for case in read_cases(CASES / f"{name}.jsonl") for tag in case.tags]
    assert "hostile" in tags
    assert any(tag.startswith("lang-") for tag in tags)


def test_the_labels_are_among_the_values_that_the_prompts_allow():
    allowed = {
        "category": {"billing", "technical", "account"},
        "urgency": {"low", "medium", "high"},
        "severity": {"critical", "standard", "low"},
        "sentiment": {"positive", "negative", "neutral"},
    }
    for file in CASES.glob("*.jsonl"):
        for case in read_cases(file):
            for field in allowed.keys() & case.expected.keys():
                assert case.expected[field] in allowed[field], (file.name, case.input)


def test_the_documents_of_the_bundled_cases_are_in_the_knowledge_base_and_hold_the_facts():
    folder = CASES.parents[1] / "knowledge_base"
    for case in read_cases(CASES / "answers.jsonl"):
        texts = [(folder / name).read_text() for name in case.expected["documents"]]
        if texts and len(case.expected["facts"]) == 1:
            wordings = case.expected["facts"][0]
            assert facts_in("\n".join(texts).replace("**", ""), [wordings]) == 1 or wordings[0] in ("no", "5", "15")


def test_the_facts_and_calls_of_the_bundled_assignments_are_those_of_the_companies():
    from include.sample.company_research import search_market_facts

    for case in read_cases(CASES / "tool_calls.jsonl"):
        found = " ".join(
            fact
            for call in case.expected["calls"]
            for fact in search_market_facts(company=call["company"], topic=call["topic"])
        )
        assert found
        assert facts_in(found, case.expected["facts"]) == 1, case.input


# Scorers


@pytest.mark.parametrize(
    ("text", "wordings", "is_in"),
    [
        ("It costs 5 EUR.", ["5"], True),
        ("It costs 15 EUR.", ["5"], False),
        ("It costs 5.1 EUR.", ["5"], False),
        ("It costs 5,1 EUR.", ["5"], False),
        ("It costs 1.5 EUR.", ["5"], False),
        ("It costs 5.", ["5"], True),
        ("READ-ONLY after 30 days", ["read-only"], True),
        ("within 30\n days", ["30 days"], True),
        ("a hundred", ["60", "hundred"], True),
        ("notable", ["not"], False),
    ],
)
def test_a_fact_is_in_a_text_as_whole_words_and_whole_numbers(text, wordings, is_in):
    assert facts_in(text, [wordings]) == is_in


def test_a_set_is_scored_by_what_is_too_much_and_what_is_missing():
    assert precision_and_recall(["a", "b"], ["a", "c", "d"]) == {"precision": 0.5, "recall": pytest.approx(1 / 3)}
    assert precision_and_recall([], ["a"]) == {"precision": 0.0, "recall": 0.0}
    assert precision_and_recall([], []) == {"precision": 1.0, "recall": 1.0}
    assert SameSet("teams")({"teams": ["a"]}, Given(["a", "a"]), Asked()) == {"precision": 1.0, "recall": 1.0}


def test_fields_are_scored_one_by_one():
    scores = SameFields("x", "y")({"x": 1, "y": 2}, Given({"x": 1, "y": 3, "z": 4}), Asked())
    assert scores == {"x": 1.0, "y": 0.0}


def test_calls_of_tools_are_scored_by_tool_and_arguments():
    call = {"tool": "look_up", "company": "Tretwald"}
    expected = {"calls": [call], "facts": [["45"]]}
    assert ToolCalls()(expected, Given("45 %", [call]), Asked()) == {
        "calls, precision": 1.0,
        "calls, recall": 1.0,
        "facts": 1.0,
    }
    other = ToolCalls()(expected, Given("45 %", [{**call, "company": "Glacivane"}]), Asked())
    assert (other["calls, precision"], other["calls, recall"]) == (0.0, 0.0)
    assert ToolCalls()(expected, Given("45 %"), Asked())["calls, recall"] == 0.0


# Statistics


def test_the_interval_of_a_share_is_wilsons():
    assert wilson(0.8, 100) == pytest.approx((0.8, 0.7112, 0.8666), abs=1e-4)  # by Wilson's formula, by hand
    assert wilson(1.0, 4).low < 0.6
    assert wilson(0.0, 4).high > 0.4


def test_the_test_of_paired_answers_is_mcnemars_exact_one():
    """2 gained, 8 lost: P(at most 2 of 10 coins) = 56 / 1024."""
    changes = [1] * 2 + [-1] * 8 + [0] * 90
    assert chance_of_loss(changes) == pytest.approx(56 / 1024)
    assert chance_of_gain([-each for each in changes]) == pytest.approx(56 / 1024)
    assert chance_of_loss([]) == chance_of_loss([0]) == 1.0


@given(st.lists(st.integers(-3, 3), max_size=8))
def test_the_chance_of_a_loss_counts_all_combinations_of_signs(changes):
    import itertools

    sums = [sum(each) for each in itertools.product(*[(size, -size) for size in changes])]
    assert chance_of_loss(changes) == pytest.approx(sum(each <= sum(changes) for each in sums) / len(sums))


@given(st.floats(0.001, 0.5), st.floats(0.01, 1))
def test_with_as_many_cases_as_are_needed_a_plain_loss_is_significant_and_with_fewer_it_is_not(alarms, loss):
    needed = cases_needed(alarms, loss)
    lost = math.floor(needed * loss + 1e-9)
    assert chance_of_loss([-1] * lost) <= alarms * (1 + 1e-6)
    fewer = math.ceil((needed - 1) * loss - 1e-9) - 1
    assert chance_of_loss([-1] * max(0, fewer)) > alarms * (1 - 1e-6)


def test_the_interval_of_a_difference_holds_the_true_one_as_often_as_it_says():
    draw, inside = random.Random(7), 0  # noqa: S311 (no secret)
    for _ in range(400):
        differences = draw.choices([-1, 0, 1], [0.15, 0.8, 0.05], k=100)
        _, low, high = difference_interval(differences)
        inside += low <= -0.1 <= high
    assert inside / 400 > 0.92


# Verdicts


def result(passed: list[int], trials: int = 1, metric: str = "right", **changes: object) -> Result:
    """A result in which case n is passed in `passed[n]` of the trials."""
    return Result(
        subject="a subject",
        version="prompt",
        model="model",
        run_id="run",
        at=datetime(2026, 11, 26, tzinfo=UTC),
        trials={
            f"case {n}": [Trial(metrics={metric: float(trial < number)}) for trial in range(trials)]
            for n, number in enumerate(passed)
        },
    ).model_copy(update=changes)


def verdict(now: Result, before: Result | None) -> Outcome:
    return judge_change(now, before, ALARMS, 0.1).outcome


def test_a_verdict_says_better_worse_or_that_no_difference_is_significant():
    half = [1] * 50 + [0] * 50
    assert verdict(result(half), result(half)) is Outcome.SAME
    assert verdict(result([1] * 60 + [0] * 40), result(half)) is Outcome.BETTER
    assert verdict(result([1] * 40 + [0] * 60), result(half)) is Outcome.WORSE


def test_few_cases_are_too_few_to_tell_and_never_passed():
    for cases in (1, 4, 12, 49):
        assert verdict(result([1] * cases), result([1] * cases)) is Outcome.TOO_FEW
        assert verdict(result([1] * cases), result([0] * cases)) is Outcome.TOO_FEW
        assert verdict(result([1] * cases), None) is Outcome.TOO_FEW
    assert verdict(result([1] * 50), result([1] * 50)) is Outcome.SAME


def test_a_loss_that_few_cases_prove_is_a_loss():
    assert verdict(result([0] * 12), result([1] * 12)) is Outcome.WORSE
    assert verdict(result([0] * 4), result([1] * 4)) is Outcome.TOO_FEW, "four questions decide nothing"


def test_only_the_cases_that_both_results_have_are_compared():
    now, before = result([1] * 60), result([1] * 60)
    now.trials = {f"another {key}": trials for key, trials in now.trials.items()} | {"case 1": now.trials["case 1"]}
    assert verdict(now, before) is Outcome.TOO_FEW


def test_a_missing_metric_is_incomplete_whatever_the_others_say():
    before, now = result([1] * 100), result([1] * 100)
    now.trials["case 7"] = [Trial(metrics={"other": 1.0})]
    assert verdict(now, before) is Outcome.INCOMPLETE
    assert verdict(result([1] * 100, metric="other"), before) is Outcome.INCOMPLETE
    assert verdict(now, None) is Outcome.INCOMPLETE


def test_an_answer_without_the_required_form_is_not_passed():
    now = result([1] * 100)
    now.trials = {key: [Trial(error="invalid answer")] for key in now.trials}
    assert verdict(now, result([1] * 100)) is Outcome.WORSE
    assert now.failures == {"invalid answer": 100}


def test_the_first_result_has_nothing_to_compare_with():
    assert verdict(result([1] * 100), None) is Outcome.FIRST


def test_results_with_different_numbers_of_trials_are_compared_by_their_shares():
    assert verdict(result([3] * 100, trials=3), result([1] * 100)) is Outcome.SAME
    assert verdict(result([0] * 30 + [3] * 70, trials=3), result([1] * 100)) is Outcome.WORSE


def drawn(draw: random.Random, shares: list[float]) -> Result:
    return result([int(draw.random() < share) for share in shares])


def test_false_alarms_over_200_repetitions_without_a_change_stay_below_the_stated_rate():
    """Each repetition asks the same model twice, whose answers differ by chance."""
    draw = random.Random(20261126)  # noqa: S311 (no secret)
    shares = [draw.betavariate(4, 1) for _ in range(100)]
    alarms = sum(verdict(drawn(draw, shares), drawn(draw, shares)) is Outcome.WORSE for _ in range(200))
    assert alarms / 200 <= ALARMS


@pytest.mark.parametrize(
    ("lost", "gained", "power"),
    [(0.10, 0.00, 0.95), (0.12, 0.02, 0.75), (0.15, 0.05, 0.60)],
    ids=["only losses", "few gains", "some gains"],
)
def test_a_loss_of_10_points_at_100_cases_is_found_as_often_as_the_docs_say(lost, gained, power):
    draw, found = random.Random(5), 0  # noqa: S311 (no secret)
    for _ in range(300):
        before = [1] * 80 + [0] * 20
        now = [int(draw.random() >= lost / 0.8) for _ in range(80)] + [
            int(draw.random() < gained / 0.2) for _ in range(20)
        ]
        found += verdict(result(now), result(before)) is Outcome.WORSE
    assert found / 300 >= power


# Reports


@given(st.text())
@example("| a | b <b>c</b> [d](https://example.com) `e | f` ![g](h) \\| <https://example.com>")
def test_text_from_outside_stays_in_its_cell_and_is_no_link_and_no_html(text):
    from include.page.previews import as_markdown

    html = str(as_markdown(table(["a"], [[as_markdown_cell(text)]])))
    assert html.count("<td") == 1
    assert html.count("<tr") == 2
    assert not re.search("<a |<img|<code|<b>", html)


def test_a_result_is_read_as_it_was_written(storage):
    from include.evaluation.results import read_result, result_path, write_result

    written = result([1, 0], trials=2)
    write_result(result_path("a run", "a subject"), written)
    assert read_result(result_path("a run", "a subject")) == written
    assert json.loads(Path(result_path("a run", "a subject").path).read_text())["model"] == "model"
