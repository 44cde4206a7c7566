"""The messages of the event-driven DAGs: requests, replies, and how a message is read.

A request is one JSON object, `Request`. A sender in another language needs only its fields:

    {"version": 1, "request_id": "ticket-4711", "text": "My tracker is offline.", "sent_at": "2026-11-24T08:30:00Z"}

An incompatible change gets a new version. New optional fields do not: readers ignore unknown fields.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

LARGEST_BYTES = 256 * 1024

# A topic per DAG that reads requests, as each consumer group reads all messages of its topic.
EVENT_REQUESTS = "inference_requests"
STREAM_REQUESTS = "stream_requests"
REPLIES = "inference_replies"
DEAD_LETTERS = "inference_dead_letters"


# W3C Trace Context: the id of a sender's trace, which replies and dead letters keep.
TRACE_HEADERS = {
    "traceparent": re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"),
    "tracestate": re.compile(r"[\x20-\x7e]{1,512}"),
}


class ReplyOptions(BaseModel):
    """What the sender wants to get back."""

    wanted: bool = Field(default=True, description="Whether a reply is sent. The answer is stored anyway.")
    echo: str = Field(default="", max_length=500, description="Returned as is, for the sender's own use.")


class Request(BaseModel):
    """A text to answer."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    version: Literal[1] = Field(description="Version of this contract.")
    request_id: str = Field(
        min_length=1,
        max_length=200,
        pattern=r"^[\w.:/@+=-]+$",
        description="The sender's own id. A request that arrives twice with the same id is answered once.",
    )
    text: str = Field(min_length=1, max_length=20_000, description="What to answer.")
    reply: ReplyOptions = Field(default=ReplyOptions(), description="What the sender wants to get back.")
    sent_at: AwareDatetime = Field(description="When it was sent, with the time zone.")

    @field_validator("text")
    @classmethod
    def _is_more_than_blanks(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("it is blank")
        if "\0" in text:
            raise ValueError("it contains the character NUL, which databases do not store")
        return text

    @field_validator("reply")
    @classmethod
    def _can_be_stored(cls, reply: ReplyOptions) -> ReplyOptions:
        if "\0" in reply.echo:
            raise ValueError("echo contains the character NUL, which databases do not store")
        return reply

    def fingerprint(self) -> str:
        """Return a hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class Reply(BaseModel):
    """The answer to a request. It is sent at least once: a reader drops a `request_id` that it has seen."""

    version: Literal[1] = Field(default=1, description="Version of this contract.")
    request_id: str = Field(description="That of the request.")
    answer: JsonValue = Field(description="What the model returned.")
    echo: str = Field(default="", description="That of the request.")
    answered_at: AwareDatetime = Field(description="When the model answered.")


class Received(dict[str, Any]):
    """A message as an event: `topic`, `partition`, `offset`, and one of `request` and `error`; the other is None.

    Airflow logs every event of a trigger; for this one it logs the position, not the text.
    """

    def __repr__(self) -> str:
        return f"<message of {self['topic']}[{self['partition']}] at {self['offset']}>"


def parse_message(*args: Any) -> Received:
    """Read a message of Kafka, given as the last argument (a `confluent_kafka.Message`).

    Airflow's trigger calls this. It never raises (that would be a crash loop) and never returns anything falsy (that
    would silently skip the message). The result is plain JSON that every database can store.
    """
    message = args[-1]
    try:
        value, error = read_request(message.value())
    except Exception as problem:  # no message may stop its reader
        value, error = None, f"it cannot be read ({type(problem).__name__})"
    return Received(
        topic=message.topic(),
        partition=message.partition(),
        offset=message.offset(),
        request=value.model_dump(mode="json") if value else None,
        error=error,
    )


def read_request(value: bytes | None) -> tuple[Request | None, str | None]:
    """Read the request in these bytes; return it, or else what is wrong, without quoting them."""
    if value is None:
        return None, "it has no value (a tombstone)"
    if not value:
        return None, "it is empty"
    if len(value) > LARGEST_BYTES:
        return None, f"it has {len(value)} bytes; {LARGEST_BYTES} are allowed"
    try:
        return Request.model_validate_json(value), None
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        named = [f"{'.'.join(map(str, each['loc'])) or 'message'}: {each['msg']}" for each in problems[:5]]
        return None, "; ".join(named)


def trace_headers(headers: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Return the valid TRACE_HEADERS among a message's headers."""
    texts = {name: value.decode(errors="replace") if isinstance(value, bytes) else value for name, value in headers}
    return {
        name: text
        for name, form in TRACE_HEADERS.items()
        if isinstance(text := texts.get(name), str) and form.fullmatch(text)
    }


def new_request(text: str, request_id: str = "", echo: str = "", wanted: bool = True) -> Request:
    """Make a request that is sent now, with a new id if none is given.

    :raises pydantic.ValidationError: a field breaks the contract.
    """
    return Request(
        version=1,
        request_id=request_id or uuid4().hex,
        text=text,
        reply=ReplyOptions(wanted=wanted, echo=echo),
        sent_at=datetime.now(UTC),
    )
