"""Drafts that a person decides on: the request to review, the delivery of what was approved, and the report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from textwrap import wrap
from typing import Any

from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param
from airflow.sdk.definitions.param import ParamsDict

from include.common.storage import artifact_path, name_on_storage, write_artifact

LINE_LENGTH = 80  # Airflow's UI does not wrap a code block

APPROVE = "Approve"
REJECT = "Reject"


class ReviewOperator(HITLOperator):
    """Ask a person to approve, edit or reject a draft; no answer in time means `REJECT`.

    Not ApprovalOperator: in a mapped task group, what comes after a rejection runs all the same.

    :param ticket: `ticket_id` and `text`.
    :param draft: `reply`.
    :param minutes: how long to wait for the answer; a number or a template of one.
    """

    template_fields = ("ticket", "draft", "minutes")

    def __init__(self, *, ticket: Any, draft: Any, minutes: Any, **kwargs: Any) -> None:
        kwargs["execution_timeout"] = None  # HITLOperator would limit the person's time with it
        super().__init__(subject="Send this reply?", options=[APPROVE, REJECT], defaults=REJECT, **kwargs)
        self.ticket = ticket
        self.draft = draft
        self.minutes = minutes

    def pre_execute(self, context: Any) -> None:
        """Fill in the request. Templates are rendered already: no text in it is taken for one."""
        self.subject, self.body, self.params = review_form(self.ticket, self.draft["reply"])
        self.response_timeout = timedelta(minutes=float(self.minutes))
        context["ticket_id"] = self.ticket["ticket_id"]


def review_form(ticket: Mapping[str, str], draft: str) -> tuple[str, str, ParamsDict]:
    """Return subject, body (Markdown) and fields of the request to review a draft; only `reply` can be edited.

    On Airflow 3.1 the form would also show the DAG's own params: these fields take their place.
    """
    field = Param(
        draft,
        type="string",
        format="multiline",
        minLength=1,
        title="Reply",
        description="Edit it if necessary. This text is sent.",
    )
    return f"Send this reply to ticket {ticket['ticket_id']}?", verbatim(ticket["text"]), ParamsDict({"reply": field})


def verbatim(text: str) -> str:
    """Return text from outside as Markdown that shows its exact characters, in lines that fit: no link or heading."""
    paragraphs = re.split(r"\r\n?|\n", text)
    lines = [part for line in paragraphs for part in wrap(line, LINE_LENGTH, drop_whitespace=False) or [""]]
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence, *lines, fence])


def send_once(run_id: str, ticket: Mapping[str, str], draft: str, decision: Mapping[str, Any]) -> dict[str, Any]:
    """Deliver an approved reply to the outbox on storage, unless an earlier try has.

    :param decision: what the review returned: `chosen_options`, `params_input`, `responded_by_user`, `responded_at`.
    :raises AirflowSkipException: the draft was not approved.
    """
    if decision["chosen_options"] != [APPROVE]:
        raise AirflowSkipException(f"Ticket {ticket['ticket_id']}: the draft was rejected.")
    reply = (decision["params_input"] or {}).get("reply", draft)
    person = decision["responded_by_user"]
    record = {
        "ticket_id": ticket["ticket_id"],
        "reply": reply,
        "edited": reply != draft,
        "approved_by": person and person["name"],
        "approved_at": str(decision["responded_at"]),
    }
    path = artifact_path("human_review", run_id, f"{name_on_storage(ticket['ticket_id'])}.json")
    if not path.exists():
        write_artifact(path, json.dumps(record, indent=2, ensure_ascii=False))
    return {"file": str(path), "edited": record["edited"]}


def summarize(
    tickets: Sequence[Mapping[str, str]],
    decisions: Sequence[Mapping[str, Any] | None],
    sent: Sequence[Mapping[str, Any] | None],
) -> str:
    """Report how many replies were sent, and how many of them edited; how many were rejected; which tickets failed.

    :param decisions: for each ticket what its review returned, or None if it failed.
    :param sent: for each ticket what `send_once` returned, or None.
    """
    rejected = late = 0
    failed = []
    for ticket, decision, delivery in zip(tickets, decisions, sent, strict=True):
        if decision and REJECT in decision["chosen_options"]:
            rejected += 1
            late += decision["responded_by_user"] is None
        elif delivery is None:
            failed.append(ticket["ticket_id"])
    done = [delivery for delivery in sent if delivery]
    text = f"{len(done)} sent ({sum(delivery['edited'] for delivery in done)} edited)"
    text += f", {rejected} rejected ({late} as nobody answered in time)"
    return text + (f", failed: {', '.join(failed)}" if failed else "")
