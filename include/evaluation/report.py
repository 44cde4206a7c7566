"""Reports of evaluations, in Markdown with a chart: numbers, confidence, failures, and the worst cases side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from include.common.charts import bar_chart
from include.common.markdown import as_markdown_cell, table
from include.common.prices import shown_usd
from include.evaluation.cases import Case, as_text
from include.evaluation.results import Result, Trial, passed_share
from include.evaluation.verdicts import Verdict

MOST_CASES = 10


@dataclass(frozen=True)
class Compared:
    """A subject's result, the accepted one, and the verdict."""

    result: Result
    accepted: Result | None
    verdict: Verdict
    cases: Sequence[Case]

    def line(self) -> str:
        """Return it as one line."""
        passed = f"passed {self.result.passed.percent()} of {len(self.result.trials)}"
        return f"{self.result.subject}: {self.verdict.outcome} ({self.verdict.reason}); {passed}"


def chart(compared: Sequence[Compared]) -> bytes:
    """Draw the shares of passed cases."""
    bars = {"now": {each.result.subject: each.result.passed.value for each in compared}}
    if accepted := {each.result.subject: each.accepted.passed.value for each in compared if each.accepted}:
        bars["accepted"] = accepted
    return bar_chart("Passed cases", "share, 0 to 1", bars)


def markdown(compared: Sequence[Compared], alarm_rate: float) -> str:
    """Return the body of a report: a table of all subjects, and a section on each."""
    lines = [summary(compared)]
    lines += [
        f"Without a change, each of these verdicts is *worse* in at most {100 * alarm_rate:.3g} % of all evaluations. "
        "The brackets are 95 % intervals.",
        "",
    ]
    for each in compared:
        lines += [f"## {each.result.subject}", "", *_details(each), ""]
    return "\n".join(lines)


def summary(compared: Sequence[Compared]) -> str:
    """Return a table with a row for each subject."""
    rows = []
    for each in compared:
        result = each.result
        before = _percent(each.accepted.passed.value) if each.accepted else ""
        rows.append(
            [
                result.subject,
                f"**{each.verdict.outcome}**",
                result.passed.percent(),
                before,
                str(len(result.trials)),
                _cost(result.cost_usd, result),
                _cost(result.paid_usd, result) if result.reused < result.answers else "$0",
                f"{result.reused:,} of {result.answers:,}",
                f"{result.seconds:.2f}",
            ]
        )
    return table(
        ["subject", "verdict", "passed", "accepted", "cases", "cost", "newly paid", "reused answers", "median s"], rows
    )


def _details(compared: Compared) -> list[str]:
    result, accepted, verdict = compared.result, compared.accepted, compared.verdict
    lines = [f"Model `{result.model}`, prompt `{result.version}`: {verdict.reason}."]
    if accepted:
        lines.append(f"Accepted: model `{accepted.model}`, prompt `{accepted.version}`, of {accepted.at:%Y-%m-%d}.")
    if verdict.difference:
        value, low, high = verdict.difference
        lines.append(
            f"Difference {100 * value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], p = {verdict.chance:.3g}."
        )
    if result.agreement:
        lines += ["", result.agreement.line()]
    of_accepted = accepted.metrics if accepted else {}
    metrics = [
        [name, f"{value:.2f}", f"{of_accepted[name]:.2f}" if name in of_accepted else ""]
        for name, value in result.metrics.items()
    ]
    lines += ["", table(["metric", "now", "accepted"], metrics)]
    if result.failures:
        failures = [[as_markdown_cell(name), str(number)] for name, number in result.failures.most_common()]
        lines += ["", table(["failure", "answers"], failures)]
    if by_tag := _tags(compared):
        lines += ["", table(["tag", "passed"], by_tag)]
    return [*lines, "", _worst_cases(compared)]


def _worst_cases(compared: Compared) -> str:
    """Return a table of the cases that were lost, then of those that fail as before, with both answers."""
    before = compared.accepted.trials if compared.accepted else {}
    found: list[tuple[float, list[str]]] = []
    for case in compared.cases:
        trials = compared.result.trials.get(case.key, [])
        if (share := passed_share(trials)) < 1:
            old = before.get(case.key, [])
            row = [
                as_markdown_cell(text)
                for text in (as_text(case.input), as_text(case.expected), _answer(trials), _answer(old))
            ]
            found.append((share - passed_share(old), row))
    found.sort(key=lambda each: each[0])
    return table(["input", "expected", "now", "accepted"], [row for _, row in found[:MOST_CASES]]) if found else ""


def _tags(compared: Compared) -> list[list[str]]:
    shares: dict[str, list[float]] = {}
    for case in compared.cases:
        for tag in case.tags:
            if trials := compared.result.trials.get(case.key):
                shares.setdefault(tag, []).append(passed_share(trials))
    return [
        [as_markdown_cell(tag), f"{_percent(sum(each) / len(each))} of {len(each)}"]
        for tag, each in sorted(shares.items())
    ]


def _answer(trials: Sequence[Trial]) -> str:
    """Return the first answer that is not passed, else the first."""
    shown = next((trial for trial in trials if not trial.passed), trials[0] if trials else None)
    return "" if shown is None else shown.error or as_text(shown.output)


def _cost(usd: float | None, result: Result) -> str:
    return f"{result.tokens:,} tokens" if usd is None else shown_usd(usd)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
