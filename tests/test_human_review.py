"""The DAG `human_review`: what is sent, and that nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from include.common.storage import name_on_storage
from include.human_review import review_form, send_once, summarize, verbatim
from local.reviewer import Reviewer
from tests.stack import wait_until
from tests.storages import on_storage

DRAFT = "We are sorry, and look into it."
TICKET = {"ticket_id": "T-001", "text": "My vans are offline."}
PERSON = {"id": "7", "name": "Ada"}


def decision(option: str = "Approve", reply: str | None = None, person: dict[str, str] | None = PERSON) -> dict:
    fields = {} if reply is None else {"reply": reply}
    return {
        "chosen_options": [option],
        "params_input": fields,
        "responded_by_user": person,
        "responded_at": "2026-01-02T03:04:05Z",
    }


def sent(storage: Any, name: str = "T-001") -> dict[str, Any]:
    return json.loads((storage / "human_review" / "run" / f"{name}.json").read_text())


@on_storage("disk", "s3")
def test_what_is_approved_is_sent_with_who_approved_it(storage):
    send_once("run", TICKET, DRAFT, decision(reply=DRAFT))
    assert sent(storage) == {
        "ticket_id": "T-001",
        "reply": DRAFT,
        "edited": False,
        "approved_by": "Ada",
        "approved_at": "2026-01-02T03:04:05Z",
    }


def test_an_edited_text_is_sent_as_it_was_edited(storage):
    send_once("run", TICKET, DRAFT, decision(reply="Please restart it."))
    assert (sent(storage)["reply"], sent(storage)["edited"]) == ("Please restart it.", True)


def test_an_approval_over_the_api_without_a_text_sends_the_draft(storage):
    send_once("run", TICKET, DRAFT, decision())
    assert sent(storage)["reply"] == DRAFT


def test_an_empty_text_is_not_replaced_by_the_draft(storage):
    send_once("run", TICKET, DRAFT, decision(reply=""))
    assert sent(storage)["reply"] == ""


@on_storage("disk", "s3")
def test_a_retry_sends_nothing_again(storage):
    for reply in (DRAFT, "Another text."):
        send_once("run", TICKET, DRAFT, decision(reply=reply))
    assert sent(storage)["reply"] == DRAFT


@pytest.mark.parametrize("person", [PERSON, None], ids=["by a person", "by the time-out"])
def test_a_rejected_draft_is_not_sent(storage, person):
    from airflow.providers.common.compat.sdk import AirflowSkipException

    with pytest.raises(AirflowSkipException, match="T-001"):
        send_once("run", TICKET, DRAFT, decision("Reject", DRAFT, person))
    assert not storage.exists()


def test_the_id_of_a_ticket_cannot_choose_the_folder(storage):
    send_once("run", {**TICKET, "ticket_id": "../../other"}, DRAFT, decision())
    assert [path.parent for path in storage.rglob("*.json")] == [storage / "human_review" / "run"]


@pytest.mark.parametrize(
    "text", ["![x](https://example.com/seen.png)", "```\n# out of the block", "````", "`", "{{ 1 / 0 }}"]
)
def test_a_ticket_is_shown_as_these_very_characters(text):
    fence, *lines, closing = verbatim(text).split("\n")
    assert "\n".join(lines) == text
    assert set(fence) == {"`"}
    assert fence == closing
    assert fence not in text


def test_a_long_line_of_a_ticket_is_broken_so_that_all_of_it_is_seen():
    words = ["word"] * 50
    _, *lines, _ = verbatim(" ".join(words) + "\n\nThe end.").split("\n")
    assert max(map(len, lines)) <= 80
    assert " ".join(lines).split() == [*words, "The", "end."]
    assert lines[-2:] == ["", "The end."]


def test_the_form_holds_the_draft_and_nothing_else():
    subject, _, fields = review_form(TICKET, DRAFT)
    assert "T-001" in subject
    assert fields.dump() == {"reply": DRAFT}


def test_the_report_tells_a_late_rejection_and_a_failure_apart():
    tickets = [{**TICKET, "ticket_id": f"T-{n}"} for n in range(5)]
    decisions = [decision(), decision(), decision("Reject"), decision("Reject", person=None), None]
    deliveries = [{"edited": True}, None, None, None, None]
    assert summarize(tickets, decisions, deliveries) == (
        "1 sent (1 edited), 2 rejected (1 as nobody answered in time), failed: T-1, T-4"
    )


class Person(Reviewer):
    """Answers by index of the ticket; a list of answers is given one after the other, as the question comes again."""

    def __init__(self, api: Any, answers: dict[int, list[tuple[str, str | None]]]) -> None:
        super().__init__(api)
        self.answers = answers

    def decide(self, request: dict[str, Any]) -> tuple[str, dict[str, str]]:
        answers = self.answers[request["task_instance"]["map_index"]]
        option, text = answers.pop(0) if len(answers) > 1 else answers[0]
        return option, {"reply": request["params"]["reply"]["value"] if text is None else text}


@pytest.mark.needs_dags("human_review")
def test_on_a_real_airflow_drafts_are_approved_edited_rejected_and_rejected_by_the_clock(airflow):
    late = airflow.trigger("human_review", {"tickets": ["Nobody reads this."], "review_minutes": 0.05})
    run_id = airflow.trigger("human_review", {"tickets": ["Where is my van?", "Refund me.", "Hello!", "{{ 1 / 0 }}"]})
    person = Person(
        airflow,
        {
            0: [("Approve", None)],
            1: [("Approve", "You get your money back.")],
            2: [("Reject", None)],
            3: [("Approve", ""), ("Reject", None)],
        },
    )
    wait_until(
        lambda: (
            (list(person.answer("human_review", run_id)) and False)
            or airflow.run("human_review", run_id)["state"] in ("success", "failed")
        ),
        timeout=600,
    )

    states = airflow.states("human_review", run_id)
    assert [states[f"ticket.send[{n}]"] for n in range(4)] == ["success", "success", "skipped", "skipped"]
    folder = airflow.home / "artifacts" / "human_review" / name_on_storage(run_id)
    records = [json.loads(path.read_text()) for path in sorted(folder.iterdir())]
    assert [record["ticket_id"] for record in records] == ["line 1", "line 2"]
    assert [record["edited"] for record in records] == [False, True]
    assert records[1]["reply"] == "You get your money back."
    assert records[0]["approved_by"]
    report = airflow.xcom("human_review", run_id, "report", "return_value")
    assert report["result"] == "2 sent (1 edited), 2 rejected (0 as nobody answered in time)"

    airflow.succeeds("human_review", late)
    report = airflow.xcom("human_review", late, "report", "return_value")
    assert report["result"] == "0 sent (0 edited), 1 rejected (1 as nobody answered in time)"
