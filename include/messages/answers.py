"""Answer messages from any broker so that none is lost and none is paid twice.

A message is handled at least once. Its answer is stored by request id before its reply is sent, and the message is
settled (committed or deleted) only after the reply or the dead letter has arrived. So a message that is delivered again
finds its answer: it is not paid again, and its reply is the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from airflow.providers.common.compat.sdk import AirflowFailException
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pydantic import BaseModel, ValidationError

from include.common.spans import span
from include.common.storage import read_artifact, storage_path, write_artifact
from include.messages.contract import Reply, Request
from include.messages.model import PromptedModel, Unanswerable
from include.messages.refusals import Refused, TooLarge

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

Message = TypeVar("Message", contravariant=True)

log = logging.getLogger(__name__)


class Mailbox(Protocol[Message]):
    """Where messages come from, and where their replies and dead letters go."""

    def name(self, message: Message) -> str:
        """Return a unique name of the message, the same at each delivery."""

    def read(self, message: Message) -> tuple[Request | None, str | None]:
        """Return the message's request, or what is wrong with it."""

    def trace(self, message: Message) -> dict[str, str]:
        """Return the message's TRACE_HEADERS."""

    async def reply(self, message: Message, reply: Reply) -> None:
        """Send a reply; return when it has arrived.

        :raises TooLarge: no reply of this size can be sent.
        """

    async def bury(self, message: Message, reason: str) -> None:
        """Make the message a dead letter; return when it has arrived."""

    async def settle(self, message: Message) -> None:
        """Make sure that the message is not delivered again."""


async def answer_all(
    messages: Sequence[Message], mailbox: Mailbox[Message], model: PromptedModel, folder: str, seconds: float
) -> Counter[str]:
    """Answer messages, `model.in_flight` of them at a time.

    A refusal of one message (`Refused`) does not affect the others. After any other failure no message is begun.

    :param folder: the folder of the answers on the project's storage.
    :param seconds: after this time no message is begun.
    :return: the number of messages that were `answered`, `repeated` and `dead-lettered`, and of those `left` for lack
        of time.
    :raises Refused: a reply or dead letter was refused. Its message is not settled.
    :raises AirflowFailException: the account or a connection is at fault; no retry helps.
    :raises AirflowException: the model, the storage or the mailbox fails now. What is done by then is settled.
    """
    answers = RequestAnswers(folder, model)
    free = asyncio.Semaphore(model.in_flight)
    ends = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    problems: list[Exception] = []
    refusals: list[Exception] = []

    async def handle(message: Message) -> None:
        async with free:
            if problems:
                return
            if time.monotonic() > ends:
                counts["left"] += 1
                return
            try:
                with _span(message, mailbox) as current:
                    outcome = await _answer(message, mailbox, answers)
                    await mailbox.settle(message)
                    current.set_attribute("genai.message.outcome", outcome)
                counts[outcome] += 1
            except Refused as refusal:
                refusals.append(refusal)
            except Exception as problem:
                problems.append(problem)

    try:
        await asyncio.gather(*map(handle, messages))
    finally:
        model.usage.publish()
    for failure in problems + refusals:
        raise failure
    return counts


def _span(message: Message, mailbox: Mailbox[Message]) -> AbstractContextManager[trace.Span]:
    """Trace the handling of a message, with a link to the trace of its sender."""
    carried = TraceContextTextMapPropagator().extract(mailbox.trace(message), Context())
    sender = trace.get_current_span(carried).get_span_context()
    attributes = {"messaging.operation.type": "process", "messaging.message.id": mailbox.name(message)}
    return span("process message", attributes, trace.SpanKind.CONSUMER, [trace.Link(sender)] if sender.is_valid else [])


async def _answer(message: Message, mailbox: Mailbox[Message], answers: RequestAnswers) -> str:
    """Send the reply or the dead letter; return the outcome that is counted."""
    request, reason = mailbox.read(message)
    if request is not None:
        try:
            reply = await answers.reply(request, mailbox.name(message))
            if reply is None:
                return "repeated"
            if request.reply.wanted:
                await mailbox.reply(message, reply)
            return "answered"
        except Unanswerable as problem:
            reason = str(problem)
        except TooLarge as refusal:
            stored_at = await answers.release(request.request_id)
            reason = f"its reply is too large: {refusal} The answer is stored: {stored_at}"
    log.warning("The message %s is a dead letter: %s", mailbox.name(message), reason)
    await mailbox.bury(message, reason or "")
    return "dead-lettered"


class StoredAnswer(BaseModel):
    """An answer, and the name of the message that got it as its reply.

    `message` is empty if the reply could not be sent: the next message with this id gets it.
    """

    request_id: str
    fingerprint: str
    message: str
    answer: Any
    answered_at: datetime


class RequestAnswers:
    """Answers requests, each id once.

    :param folder: the folder of the answers on the project's storage.
    :param model: the model that answers.
    """

    def __init__(self, folder: str, model: PromptedModel) -> None:
        self._folder = storage_path(folder, "answers")  # opened once, as opening costs more than reading an answer
        self._model = model
        self._of_id: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def reply(self, request: Request, message: str) -> Reply | None:
        """Return the reply to the request in this message, with the stored answer if there is one.

        :return: the reply; None if another message with this id gets it.
        :raises Unanswerable: the model never answers this text, or the id was used for another text.
        :raises AirflowException: see `PromptedModel.ask`.
        """
        path = self._path(request.request_id)
        async with self._of_id[request.request_id]:
            stored = await asyncio.to_thread(read_answer, path)
            if stored is None:
                stored = StoredAnswer(
                    request_id=request.request_id,
                    fingerprint=request.fingerprint(),
                    message="",
                    answer=await self._model.ask(request.text),
                    answered_at=datetime.now(UTC),
                )
            if stored.fingerprint != request.fingerprint():
                raise Unanswerable("request_id: it was used for another text before")
            if not stored.message:
                stored.message = message
                await asyncio.to_thread(write_artifact, path, stored.model_dump_json())
        if stored.message != message:
            return None
        return Reply(
            request_id=request.request_id,
            answer=stored.answer,
            echo=request.reply.echo,
            answered_at=stored.answered_at,
        )

    async def release(self, request_id: str) -> str:
        """Give the stored answer to the next message with this id, as the reply to this one cannot be sent.

        :return: the URL of the answer.
        """
        path = self._path(request_id)
        async with self._of_id[request_id]:
            stored = await asyncio.to_thread(read_answer, path)
            if stored is not None:
                stored.message = ""
                await asyncio.to_thread(write_artifact, path, stored.model_dump_json())
        return str(path)

    def _path(self, request_id: str) -> ObjectStoragePath:
        """Return the path of the answer. An id can be any text, so the name is a hash, spread over 256 folders."""
        name = hashlib.sha256(request_id.encode()).hexdigest()
        return self._folder.joinpath(name[:2], f"{name}.json")


def read_answer(path: ObjectStoragePath) -> StoredAnswer | None:
    """Read the stored answer; return None if there is none.

    :raises AirflowFailException: the stored answer cannot be read.
    """
    try:
        return StoredAnswer.model_validate_json(read_artifact(path))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise AirflowFailException(
            f"The stored answer {path} cannot be read. Delete it to have the request answered again."
        ) from None
