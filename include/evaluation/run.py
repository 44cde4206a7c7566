"""A run that evaluates subjects: which ones, what they are compared with, and the report."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowNotFoundException

from include.ai import LLM_CONN_ID
from include.common.results import publish, report, run_folder
from include.evaluation.answering import Settings, evaluate
from include.evaluation.report import Compared, chart, markdown
from include.evaluation.results import Result, read_accepted, read_result, result_path, write_result
from include.evaluation.subjects import Subject
from include.evaluation.verdicts import Outcome, judge_change

try:
    from include.spend import scores
except ImportError:  # a copied pattern may lack it: then its scores are in its reports only
    scores = None  # type: ignore[assignment]


@dataclass(frozen=True)
class EvaluationRun:
    """A run of `evaluate_prompts`.

    :param params: `subjects`, `conn_id`, `judge_conn_id`, `limit`, `trials`, `budget_usd`, `reuse_days` and
        `alarm_rate`.
    :param subjects: all that can be chosen.
    :param dags: the folder with the files of their DAGs, at any depth.
    """

    run_id: str
    params: Mapping[str, Any]
    subjects: Sequence[Subject]
    dags: Path

    def choose(self) -> list[str]:
        """Return the names of the subjects to evaluate: those that the params name, or all whose DAG exists.

        :raises AirflowFailException: a subject, its DAG or a connection that the params name does not exist, or an
            accepted result cannot be read.
        """
        for conn_id in (self.params["conn_id"], self.params["judge_conn_id"]):
            if conn_id not in (None, LLM_CONN_ID):  # for which OPENAI_API_KEY is enough
                _check_connection(conn_id)
        known = [subject.name for subject in self.subjects]
        there = [subject.name for subject in self.subjects if subject.file(self.dags)]
        wanted = self.params["subjects"]
        if unknown := [name for name in wanted or () if name not in known]:
            raise AirflowFailException(f"There is no subject {unknown[0]!r}. There are: {', '.join(known)}.")
        if missing := [name for name in wanted or () if name not in there]:
            raise AirflowFailException(f"Subject {missing[0]!r}: its DAG is not below {self.dags}.")
        chosen = [name for name in there if wanted is None or name in wanted]
        for name in chosen:
            read_accepted(name)  # if it cannot be read, fail before anything is paid
        return chosen

    def evaluate(self, name: str, share: int) -> dict[str, Any]:
        """Evaluate a subject and keep the result.

        :param share: the number of subjects that share the budget.
        :raises AirflowException: see `include.evaluation.answering.evaluate`.
        """
        budget = self.params["budget_usd"]
        settings = Settings(
            conn_id=self.params["conn_id"],
            judge_conn_id=self.params["judge_conn_id"],
            limit=self.params["limit"],
            trials=self.params["trials"],
            budget_usd=None if budget is None else budget / share,
            reuse_days=self.params["reuse_days"],
        )
        result = asyncio.run(evaluate(self._subject(name), self.dags, self.run_id, settings))
        write_result(result_path(self.run_id, name), result)
        if scores:
            _record(result)
        return {"cases": len(result.trials), "passed": result.passed.value}

    def compare(self, names: Sequence[str], evaluated: Collection[str]) -> dict[str, Compared | None]:
        """Compare each result with the accepted one.

        All subjects together raise a false alarm at most as often as `alarm_rate` says.

        :param evaluated: those whose evaluation has not failed. The others get None.
        """
        alarm_rate = self._alarm_rate(names)
        return {name: self._compare(name, alarm_rate) if name in evaluated else None for name in names}

    def publish(self, compared: Mapping[str, Compared | None]) -> list[dict[str, Any]]:
        """Publish the report of the Airflow run, and return what the gate and a person need for each subject."""
        done = [each for each in compared.values() if each]
        publish("report.md", report("Evaluation", markdown(done, self.params["alarm_rate"])))
        if done:
            publish("passed.svg", chart(done))
        alarm_rate = self._alarm_rate(compared)
        return [self._found(name, each, alarm_rate) for name, each in compared.items()]

    def _alarm_rate(self, names: Collection[str]) -> float:
        rate: float = self.params["alarm_rate"]
        return rate / max(1, len(names))

    def _compare(self, name: str, alarm_rate: float) -> Compared:
        subject, accepted = self._subject(name), read_accepted(name)
        result = read_result(result_path(self.run_id, name))
        cases = [case for case in subject.read_cases() if case.key in result.trials]
        return Compared(result, accepted, judge_change(result, accepted, alarm_rate, subject.loss), cases)

    def _found(self, name: str, compared: Compared | None, alarm_rate: float) -> dict[str, Any]:
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
            "report": str(run_folder() / "report.md"),
        }

    def _subject(self, name: str) -> Subject:
        return next(subject for subject in self.subjects if subject.name == name)


def summarize(found: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return where the report is, and the verdicts in words."""
    lines = [each["line"] for each in found] or ["no DAG of a subject is in this project"]
    return {"artifacts": str(run_folder()), "result": "; ".join(lines)}


def _check_connection(conn_id: str) -> None:
    """Check that the connection exists. Otherwise OPENAI_API_KEY would be used, and another model would be measured."""
    from airflow.sdk import Connection

    try:
        Connection.get(conn_id)
    except AirflowNotFoundException:
        raise AirflowFailException(f"There is no connection {conn_id!r}.") from None


def _record(result: Result) -> None:
    """Record the scores for the page GenAI, by model and version of the prompt."""
    given: dict[str, Any] = {"cases": len(result.trials), "model": result.model, "fingerprint": result.version}
    value, low, high = result.passed
    scores.record_score(result.subject, "passed", value, low=low, high=high, **given)
    for metric, mean in result.metrics.items():
        scores.record_score(result.subject, metric, mean, **given)
