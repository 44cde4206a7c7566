"""Compare both arms of a canary: the runs that asked the candidate, and those of the same days that did not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from include.ai.canary import Canary, read_canary
from include.ai.connection import read_model_source
from include.ai.fallbacks import read_fallbacks
from include.ai.model import DEFAULT_MODEL
from include.common.markdown import as_markdown_cell, table
from include.common.prices import shown_usd
from include.common.results import publish, report, run_folder
from include.evaluation.statistics import Interval, wilson
from include.spend.reading import only, read_days
from include.spend.scores import Score, read_scores

if TYPE_CHECKING:
    import pyarrow as pa

# "No significant difference" is said only if a difference above this (10 points) is ruled out.
RULED_OUT = 0.1
ARMS = ("usual", "candidate")

Run = tuple[str, str]  # DAG and run


@dataclass
class Arm:
    """What the runs of a DAG in one arm did.

    :param failed_runs: those in which a call got no answer, or a try of a task failed.
    """

    runs: int = 0
    failed_runs: int = 0
    calls: int = 0
    failed_calls: int = 0
    unpriced: int = 0
    cost_usd: float = 0.0
    seconds: float = 0.0

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Count a run, given its rows of the ledger."""
        self.runs += 1
        self.failed_runs += any(row["failed"] or row["state"] == "failed" for row in rows)
        for row in rows:
            self.calls += row["calls"]
            self.failed_calls += row["failed"]
            self.unpriced += row["unpriced"]
            self.cost_usd += row["cost_usd"]
            self.seconds += row["seconds"]


def arms_of_runs(
    conn_id: str, canary: Canary, rows: Iterable[Mapping[str, Any]]
) -> tuple[dict[Run, tuple[str, list[Mapping[str, Any]]]], int]:
    """Return the arm and the rows of each run, and how many runs belong to neither arm.

    A run is in an arm if it asked what the hash says. Runs from before the canary are left out, and runs that asked
    something else, as under another share than today's, are in neither arm.

    :param rows: the ledger's rows of `conn_id`, the candidate and the fallbacks.
    """
    runs: dict[Run, list[Mapping[str, Any]]] = {}
    for row in rows:
        runs.setdefault((row["dag_id"], row["run_id"]), []).append(row)
    asked = {run for run, of_run in runs.items() if any(row["conn_id"] == canary.conn_id for row in of_run)}
    taken = {run for run in runs if canary.takes(conn_id, *run)}
    began = min((row["started"] for run in asked & taken for row in runs[run]), default=None)
    found, others = {}, 0
    for run, of_run in runs.items():
        if began is None or max(row["started"] for row in of_run) < began:
            continue
        if (run in asked) == (run in taken):
            found[run] = (ARMS[run in taken], of_run)
        else:
            others += 1
    return found, others


def difference_of_shares(first: int, of_first: int, second: int, of_second: int) -> Interval:
    """Return how much larger the second share is, with its 95 % interval, after Newcombe (1998)."""
    one, two = wilson(first / of_first, of_first), wilson(second / of_second, of_second)
    value = two.value - one.value
    low = value - math.hypot(two.value - two.low, one.high - one.value)
    return Interval(value, low, value + math.hypot(two.high - two.value, one.value - one.low))


def verdict(usual: Arm, candidate: Arm) -> str:
    """Say whether runs of the candidate fail more often."""
    if not usual.runs or not candidate.runs:
        return "nothing to compare with"
    difference = difference_of_shares(usual.failed_runs, usual.runs, candidate.failed_runs, candidate.runs)
    if difference.low > 0:
        return "more failures"
    if difference.high < 0:
        return "fewer failures"
    return "too few runs to tell" if difference.high > RULED_OUT else "no significant difference in failures"


def write_canary_report(last: date, days: int) -> dict[str, str]:
    """Write a report on the canaries of all connections in the ledger; return its folder and a summary in a line.

    :param last: the last of the days, in UTC.
    :raises AirflowFailException: a connection's canary is not valid.
    :raises OSError: the storage cannot be read.
    """
    first = last - timedelta(days - 1)
    rows = only(read_days(first, last).rows, kind={"chat"})
    parts, lines = [], []
    for conn_id in sorted(set(rows["conn_id"].to_pylist())):
        try:
            source = read_model_source(conn_id, DEFAULT_MODEL)
        except AirflowFailException:  # the connection no longer exists
            continue
        if canary := read_canary(source):
            of_canary = only(rows, conn_id={conn_id, canary.conn_id, *read_fallbacks(source)})
            part, line = _compare(conn_id, canary, of_canary, first, last)
            parts.append(part)
            lines.append(line)
    title = f"Canaries from {first} to {last} (UTC)"
    publish("report.md", report(title, *(parts or ["No connection in the ledger of these days states a canary."])))
    return {"artifacts": str(run_folder()), "result": "; ".join(lines) or "no connection states a canary"}


def _compare(conn_id: str, canary: Canary, rows: pa.Table, first: date, last: date) -> tuple[str, str]:
    """Return the report's part on a canary, and its summary in a line."""
    runs, others = arms_of_runs(conn_id, canary, rows.to_pylist())
    dags: dict[str, dict[str, Arm]] = {}
    for (dag_id, _), (name, of_run) in sorted(runs.items()):
        dags.setdefault(dag_id, {name: Arm() for name in ARMS})[name].add(of_run)
    verdicts = {dag_id: verdict(*(arms[name] for name in ARMS)) for dag_id, arms in dags.items()}
    usual, candidate = as_markdown_cell(conn_id), as_markdown_cell(canary.conn_id)
    named = f"{usual} (usual), {candidate} (candidate, {100 * canary.share:g} % of runs)"
    lines = [f"## {named}", "", _arms(dags, verdicts) if dags else "No run has asked the candidate yet."]
    if others:
        lines += ["", f"{others} runs are in neither arm: the share was different then, or something else asked."]
    scores = read_scores(first, last, dags.keys()).scores
    if of_scores := _scores(scores, {run: name for run, (name, _) in runs.items()}):
        lines += ["", table(["score", *ARMS], of_scores)]
    line = ", ".join(f"{dag_id}: {words}" for dag_id, words in verdicts.items()) or "no run has asked it yet"
    return "\n".join(lines), f"{canary.conn_id} instead of {conn_id}: {line}"


def _arms(dags: Mapping[str, Mapping[str, Arm]], verdicts: Mapping[str, str]) -> str:
    head = ["DAG", "arm", "runs", "with a failure", "calls", "failed", "USD per run", "s per call", "verdict"]
    rows = []
    for dag_id, arms in dags.items():
        for name in ARMS:
            arm = arms[name]
            share = wilson(arm.failed_runs / arm.runs, arm.runs).percent() if arm.runs else ""
            cost = ("?" if arm.unpriced else shown_usd(arm.cost_usd / arm.runs)) if arm.runs else ""
            seconds = f"{arm.seconds / arm.calls:.2f}" if arm.calls else ""
            numbers = [f"{arm.runs:,}", share, f"{arm.calls:,}", f"{arm.failed_calls:,}", cost, seconds]
            rows.append([as_markdown_cell(dag_id), name, *numbers, verdicts[dag_id] if name == ARMS[1] else ""])
    return table(head, rows)


def _scores(scores: Sequence[Score], arms: Mapping[Run, str]) -> list[list[str]]:
    """Return a row for each score that is a share, with the share of all cases of each arm."""
    found: dict[tuple[str, str], dict[str, list[Score]]] = {}
    for score in scores:
        arm = arms.get((score.dag_id, score.run_id))
        if arm and score.cases and 0 <= score.value <= 1:
            found.setdefault((score.subject, score.metric), {name: [] for name in ARMS})[arm].append(score)
    lines = []
    for name, by_arm in found.items():
        pooled = []
        for each in by_arm.values():
            cases, passed = sum(score.cases for score in each), sum(score.value * score.cases for score in each)
            pooled.append(f"{wilson(passed / cases, cases).percent()} of {cases}" if each else "")
        lines.append([as_markdown_cell(", ".join(name)), *pooled])
    return lines
