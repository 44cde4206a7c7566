"""The contract of the Kafka messages, and the parser that Airflow's trigger calls."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from include.messages.contract import new_request, parse_message
from tests.hostile_messages import HOSTILE, Message

pytestmark = pytest.mark.one_stack


WHERE = {"topic": "inference_requests", "partition": 2, "offset": 41}


def test_a_request_is_read_with_its_position():
    request = new_request("Where is my invoice?", "ticket-7", echo="queue 3")
    received = parse_message("an argument of the trigger's own", Message(request.model_dump_json().encode()))

    assert received == {**WHERE, "request": request.model_dump(mode="json"), "error": None}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_message_gives_its_position_and_a_reason_that_any_database_can_store(value):
    received = parse_message(Message(value))

    assert {name: received[name] for name in WHERE} == WHERE
    assert received["request"] is None
    stored = json.dumps(received, allow_nan=False)
    assert received["error"]
    assert len(received["error"]) < 1000
    assert "\\u0000" not in stored
    assert "\\ud800" not in stored


def test_whatever_goes_wrong_inside_the_parser_does_not_raise():
    assert parse_message(Message(MemoryError()))["error"] == "it cannot be read (MemoryError)"


def test_fields_of_a_later_version_of_a_sender_are_ignored():
    fields = {**new_request("Hello?").model_dump(mode="json"), "priority": float("nan")}
    received = parse_message(Message(json.dumps(fields).encode()))

    assert received["error"] is None
    assert "priority" not in received["request"]


def test_the_reason_quotes_nothing_of_the_message():
    secret = "my password is hunter2"
    fields = {**new_request("x").model_dump(mode="json"), "text": [secret], "sent_at": secret}

    assert "hunter2" not in str(parse_message(Message(json.dumps(fields).encode())))


def test_a_sender_is_told_at_once_what_is_wrong():
    with pytest.raises(ValidationError, match="blank"):
        new_request(" ")
    with pytest.raises(ValidationError, match="request_id"):
        new_request("Hello?", "an id with blanks")
