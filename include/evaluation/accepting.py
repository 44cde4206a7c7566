"""The gate, and the person who accepts a new prompt or model with the comparison in front of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk.definitions.param import ParamsDict

from include.evaluation.results import accepted_path, read_accepted, read_result, result_path, write_result
from include.evaluation.verdicts import Outcome

if TYPE_CHECKING:
    from include.evaluation.report import Compared

ACCEPT = "Accept"
REJECT = "Reject"


def pass_gate(found: Mapping[str, Any]) -> None:
    """Stop a subject that must not be accepted.

    :param found: of the subject: `outcome`, `line` (the verdict in words), `is_new` (whether prompt or model is not the
        accepted one) and `report` (missing if it was not evaluated).
    :raises AirflowFailException: it is worse than the accepted result, or was not evaluated.
    :raises AirflowSkipException: it neither passed nor failed, or there is nothing to decide.
    """
    if "report" not in found:
        raise AirflowFailException(f"{found['line']}: see its task evaluate.")
    if found["outcome"] == Outcome.WORSE:
        raise AirflowFailException(f"{found['line']}. See {found['report']}")
    if found["outcome"] in (Outcome.TOO_FEW, Outcome.INCOMPLETE):
        raise AirflowSkipException(f"Neither passed nor failed: {found['line']}.")
    if not found["is_new"]:
        raise AirflowSkipException(f"Passed, with the accepted prompt and model: {found['line']}.")


class AcceptOperator(HITLOperator):
    """Ask a person whether to accept a prompt and model; no answer in time means `REJECT`.

    :param found: of a subject, see `pass_gate`; `comparison` is what the person reads, as Markdown.
    :param minutes: how long to wait for the answer; a number or a template of one.
    """

    template_fields = ("found", "minutes")

    def __init__(self, *, found: Any, minutes: Any, **kwargs: Any) -> None:
        kwargs["execution_timeout"] = None  # HITLOperator takes it as the time for the person's answer
        super().__init__(subject="Accept?", options=[ACCEPT, REJECT], defaults=REJECT, **kwargs)
        self.found = found
        self.minutes = minutes

    def pre_execute(self, context: Any) -> None:
        """Fill in the request. Templates are rendered before this, so no text in the request is taken as one."""
        self.subject = f"Accept this prompt and model for {self.found['subject']}?"
        self.body = self.found["comparison"]
        self.params = ParamsDict({})  # else the form on Airflow 3.1 shows the DAG's params
        self.response_timeout = timedelta(minutes=float(self.minutes))
        context["subject"] = self.found["subject"]


def accept(run_id: str, found: Mapping[str, Any], decision: Mapping[str, Any]) -> dict[str, Any]:
    """Accept the run's result, and return the extra of the asset's event.

    :param decision: what `AcceptOperator` returned.
    :raises AirflowSkipException: it was rejected.
    :raises AirflowFailException: another result was accepted since the comparison.
    """
    if decision["chosen_options"] != [ACCEPT]:
        raise AirflowSkipException(f"{found['subject']}: rejected.")
    person, at = decision["responded_by_user"], datetime.fromisoformat(str(decision["responded_at"]))
    return accept_result(run_id, found["subject"], person and person["name"], at, found["before"])


def why_not(found: Compared) -> str:
    """Return why a result must not be accepted without a person; empty if it may be.

    A subject's first result may be, unless it is incomplete: later results are compared with it.
    """
    subject, verdict, accepted = found.result.subject, found.verdict, found.accepted
    if verdict.outcome is Outcome.INCOMPLETE:
        return f"{subject} is incomplete: {verdict.reason}. Evaluate it again."
    if accepted is None or verdict.outcome not in (Outcome.WORSE, Outcome.TOO_FEW):
        return ""
    before = f"the accepted result of {accepted.at:%Y-%m-%d %H:%M} (UTC; model {accepted.model}, {accepted.version})"
    anyway = f"To accept it anyway, delete the files in {accepted_path(subject)} first."
    if verdict.outcome is Outcome.WORSE:
        return f"{subject} is worse than {before}: {verdict.reason}. Change the prompt or the model. {anyway}"
    return f"{subject} has too few cases to compare with {before}: {verdict.reason}. Evaluate more cases. {anyway}"


def accept_result(run_id: str, subject: str, person: str | None, at: datetime, compared: str | None) -> dict[str, Any]:
    """Accept the run's result of the subject. A retry with the same `at` accepts it once.

    :param compared: when the accepted result that it was compared with was measured; None if there was none.
    :raises AirflowFailException: another result was accepted since.
    """
    result, before = read_result(result_path(run_id, subject)), read_accepted(subject, before=at)
    if (before and before.at.isoformat()) != compared:
        raise AirflowFailException(f"{subject}: another result was accepted since the comparison. Evaluate it again.")
    write_result(accepted_path(subject, at), result)
    return {
        "subject": subject,
        "prompt": result.version,
        "model": result.model,
        "passed": round(result.passed.value, 4),
        "cases": len(result.trials),
        "accepted_by": person,
        "before": None if before is None else {"prompt": before.version, "model": before.model},
    }
