"""A run that evaluates subjects: which ones, what they are compared with, and the report."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException

from include.common.storage import artifact_path
from include.evaluation.answering import Settings, evaluate
from include.evaluation.report import Compared, markdown, write_report
from include.evaluation.results import Result, read_accepted, read_result, result_path, write_result
from include.evaluation.subjects import Subject
from include.evaluation.verdicts import Outcome, judge_change

try:
    from include.spend import scores
except ImportError:  # a copied pattern may lack it: then its scores are in its reports only
    scores = None  # type: ignore[assignment]

FOLDER = "evaluate_prompts"


@dataclass(frozen=True)
class EvaluationRun:
    """A run of `evaluate_prompts`.

    :param params: `subjects`, `conn_id`, `judge_conn_id`, `limit`, `trials`, `budget_usd` and `alarm_rate`.
    :param subjects: those that there are.
    :param dags: the folder with the files of their DAGs, at any depth.
    """

    run_id: str
    params: Mapping[str, Any]
    subjects: Sequence[Subject]
    dags: Path

    def choose(self) -> list[str]:
        """Return the names of the subjects to evaluate: those that the params name, or all whose DAG is there.

        :raises AirflowFailException: the DAG of one that the params name is not there, or two have the same name.
        """
        there = [subject.name for subject in self.subjects if subject.file(self.dags)]
        wanted = self.params["subjects"]
        if missing := [name for name in wanted or () if name not in there]:
            raise AirflowFailException(f"Subject {missing[0]!r}: its DAG is not below {self.dags}.")
        return [name for name in there if wanted is None or name in wanted]

    def evaluate(self, name: str, share: int) -> dict[str, Any]:
        """Evaluate a subject and keep the result.

        :param share: among how many subjects the budget is shared.
        :raises AirflowException: see `include.evaluation.answering.evaluate`.
        """
        budget = self.params["budget_usd"]
        settings = Settings(
            conn_id=self.params["conn_id"],
            judge_conn_id=self.params["judge_conn_id"],
            limit=self.params["limit"],
            trials=self.params["trials"],
            budget_usd=None if budget is None else budget / share,
        )
        result = asyncio.run(evaluate(self._subject(name), self.dags, self.run_id, settings))
        write_result(result_path(self.run_id, name), result)
        if scores:
            _record(result)
        return {"cases": len(result.trials), "passed": result.passed.value}

    def compare(self, names: Sequence[str], evaluated: Collection[str]) -> list[dict[str, Any]]:
        """Compare each result with the accepted one, write the report, and return what is found for each subject.

        All subjects together raise a false alarm at most as often as `alarm_rate` says.

        :param evaluated: those whose evaluation has not failed. The others are incomplete.
        """
        alarm_rate = self.params["alarm_rate"] / max(1, len(names))
        compared, found = [], []
        for name in names:
            each = self._compare(name, alarm_rate) if name in evaluated else None
            compared += [each] if each else []
            found.append(self._found(name, each, alarm_rate))
        write_report(artifact_path(FOLDER, self.run_id, ""), compared, self.params["alarm_rate"])
        return found

    def _compare(self, name: str, alarm_rate: float) -> Compared:
        subject, accepted = self._subject(name), read_accepted(name)
        result = read_result(result_path(self.run_id, name))
        cases = [case for case in subject.read_cases() if case.key in result.trials]
        return Compared(result, accepted, judge_change(result, accepted, alarm_rate, subject.loss), cases)

    def _found(self, name: str, compared: Compared | None, alarm_rate: float) -> dict[str, Any]:
        """Say what the gate and a person need to know of a subject."""
        if compared is None:
            return {"subject": name, "outcome": Outcome.INCOMPLETE.value, "line": f"{name}: incomplete (not evaluated)"}
        result, accepted = compared.result, compared.accepted
        return {
            "subject": name,
            "outcome": compared.verdict.outcome.value,
            "line": compared.line(),
            "is_new": not accepted or (accepted.version, accepted.model) != (result.version, result.model),
            "before": accepted and accepted.at.isoformat(),
            "comparison": markdown([compared], alarm_rate),
            "report": str(artifact_path(FOLDER, self.run_id, "report.md")),
        }

    def _subject(self, name: str) -> Subject:
        return next(subject for subject in self.subjects if subject.name == name)


def summarize(run_id: str, found: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return where the report is, and the verdicts in words."""
    lines = [each["line"] for each in found] or ["no DAG of a subject is in this project"]
    return {"artifacts": str(artifact_path(FOLDER, run_id, "")), "result": "; ".join(lines)}


def _record(result: Result) -> None:
    """Record the scores for the page GenAI, by model and version of the prompt."""
    given: dict[str, Any] = {"cases": len(result.trials), "model": result.model, "fingerprint": result.version}
    value, low, high = result.passed
    scores.record_score(result.subject, "passed", value, low=low, high=high, **given)
    for metric, mean in result.metrics.items():
        scores.record_score(result.subject, metric, mean, **given)
