"""Answer messages of an Amazon SQS queue, each of which stays there until its reply is sent.

A message that is received is not gone: it comes back after the visibility timeout, unless it is deleted. It is deleted
here when its reply (or its dead letter) is on its queue. So it is handled at least once. A repeat finds the stored
answer: it is not paid again, and its reply is the same.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from airflow.providers.amazon.aws.hooks.sqs import SqsHook
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from pydantic import BaseModel, Field

from include.kafka_messages import Reply, read_request
from include.request_answers import RequestAnswers
from include.shown import shown_text, shown_url
from include.stored_messages import StoredMessage, store
from include.stream_answers import Answerer, Unanswerable

AWS_CONN_ID = "aws_default"
# No answer is begun later than this in a run: what is left then comes back to the next one.
BUDGET_S = 240.0
# What SQS says to a receipt that is no longer good: the message has come back since, with another.
OLD_RECEIPT = ("ReceiptHandleIsInvalid", "InvalidParameterValue")

log = logging.getLogger(__name__)


class Message(BaseModel):
    """A message as SQS gives it out. The receipt is what deletes it."""

    message_id: str = Field(alias="MessageId", min_length=1, max_length=200)
    receipt: str = Field(alias="ReceiptHandle", min_length=1)
    body: str = Field(alias="Body")


class QueueRefusal(AirflowException):
    """A queue does not do what it is asked to; the next try may succeed."""


class TooLarge(QueueRefusal):
    """A message is larger than its queue allows."""


def messages_of(events: Iterable[Any]) -> list[Message]:
    """The messages in these events (oldest first), each once, with its newest receipt.

    An event that is none of the watcher's is left out with an error in the log (anybody who may call the REST API can
    create one).
    """
    found = {}
    for event in events:
        if not event.extra:
            continue  # a run that rings for its successor
        try:
            messages = [Message.model_validate(each) for each in event.extra["payload"]["message_batch"]]
        except (TypeError, KeyError, ValueError):
            log.error("The event of %s holds no messages of the watcher; it is left out.", event.timestamp)
        else:
            found.update({message.message_id: message for message in messages})
    return list(found.values())


class Queues:
    """The queue of requests, with `<its URL>-replies` and `<its URL>-dead-letters`.

    :param url: of the queue of requests.
    :raises AirflowFailException: there is no URL.
    :raises QueueRefusal: the connection `aws_default` is not complete, or a queue cannot be used.
    """

    def __init__(self, url: str) -> None:
        if not url:
            raise AirflowFailException("GENAI_SQS_QUEUE is not set for this worker. Set it for every part of Airflow.")
        self.url = url
        self._client: Any = None
        self._largest: dict[str, int] = {}  # bytes of a message with its attributes, by queue
        for each in ("", "-replies", "-dead-letters"):  # before anything is paid for that could not be delivered
            found = self._call("get_queue_attributes", url + each, AttributeNames=["MaximumMessageSize"])
            self._largest[each] = int(found["Attributes"]["MaximumMessageSize"])

    def hidden(self) -> int:
        """About how many messages were given out and are not deleted."""
        name = "ApproximateNumberOfMessagesNotVisible"
        return int(self._call("get_queue_attributes", self.url, AttributeNames=[name])["Attributes"][name])

    def reply(self, reply: Reply) -> None:
        """Send a reply; it is on the queue when this returns.

        :raises TooLarge: the queue does not take a reply of this size.
        """
        # ASCII, as SQS refuses some characters that JSON may hold.
        self._send("-replies", json.dumps(reply.model_dump(mode="json")), {})

    def bury(self, message: Message, reason: str) -> None:
        """Send a message to the dead letters as it came, with the reason as an attribute.

        One that is too large with it goes to the project's storage, and the dead letter points to it.
        """
        own = {"reason": reason[:1000], "message_id": message.message_id}
        try:
            self._send("-dead-letters", message.body, own)
        except TooLarge:
            whole = StoredMessage(value=message.body.encode("utf-8", "surrogatepass"))
            pointer = store(self.url.rpartition("/")[2], whole)
            self._send("-dead-letters", pointer.model_dump_json(), {**own, "stored": "yes"})

    def _send(self, ending: str, body: str, attributes: dict[str, str]) -> None:
        typed = {name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()}
        parts = [body, *(part for name, value in attributes.items() for part in (name, "String", value))]
        size = sum(len(part.encode("utf-8", "surrogatepass")) for part in parts)
        if size > self._largest[ending]:
            raise TooLarge(
                f"The queue {shown_url(self.url + ending)} takes {self._largest[ending]} bytes; a message has {size}."
            )
        self._call("send_message", self.url + ending, MessageBody=body, MessageAttributes=typed)

    def delete(self, message: Message) -> None:
        """Tell SQS that the message is done."""
        self._call("delete_message", self.url, ReceiptHandle=message.receipt)

    def _call(self, operation: str, url: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client = self._client or SqsHook(aws_conn_id=AWS_CONN_ID).get_conn()
            return getattr(self._client, operation)(QueueUrl=url, **arguments)
        except (BotoCoreError, ClientError) as error:
            if operation == "delete_message" and _code(error) in OLD_RECEIPT:
                log.warning(
                    "A message of %s was not deleted, as it has come back since; it is a repeat then.", shown_url(url)
                )
                return None
            raise QueueRefusal(
                f"Connection {AWS_CONN_ID!r}, queue {shown_url(url)}: {operation} failed: {shown_text(error)}. Does "
                "the queue exist, in the connection's region, and may this role use it? Nothing is lost: what is not "
                "deleted comes back."
            ) from None


def _code(error: Any) -> str:
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


class QueueRun:
    """One run's work on the messages that it was started by.

    :param url: of the queue of requests.
    :param folder: where the answers are stored.
    :param answerer: asks the model.
    """

    def __init__(self, url: str, folder: str, answerer: Answerer) -> None:
        self._queues = Queues(url)
        self._answerer = answerer
        self._answers = RequestAnswers(folder, answerer)
        self._free = asyncio.Semaphore(answerer.in_flight)
        self._ends = time.monotonic() + BUDGET_S
        self._problem: Exception | None = None
        self._refusal: QueueRefusal | None = None
        self._counts: Counter[str] = Counter()

    async def run(self, messages: Sequence[Message]) -> dict[str, Any]:
        """Answer the messages side by side.

        :return: numbers of messages: `answered`, `repeated`, `dead-lettered`, and those `left` for want of time; and
            whether there is a `backlog` of others, in events that no run has read, or that another one is at work on.
        :raises AirflowFailException: the account or a connection is at fault; no retry mends it.
        :raises AirflowException: a queue or the model fails; what is done by then is deleted, the rest stays.
        """
        try:
            await asyncio.gather(*(self._handle_one(message) for message in messages))
        finally:
            self._answerer.usage.publish()
        if problem := self._problem or self._refusal:
            raise problem
        hidden = await asyncio.to_thread(self._queues.hidden)
        return {**self._counts, "backlog": hidden > self._counts["left"]}

    async def _handle_one(self, message: Message) -> None:
        """Do what is to be done with a message, unless something is in the way of all."""
        async with self._free:
            if self._problem:
                return
            if time.monotonic() > self._ends:
                self._counts["left"] += 1
                return
            try:
                outcome = await self._handle(message)
                await asyncio.to_thread(self._queues.delete, message)
            except QueueRefusal as refusal:  # perhaps of this message alone, which may be too large
                self._refusal = self._refusal or refusal
            except Exception as error:
                self._problem = self._problem or error
            else:
                self._counts[outcome] += 1

    async def _handle(self, message: Message) -> str:
        request, reason = read_request(message.body.encode("utf-8", "surrogatepass"))
        if request is not None:
            try:
                reply = await self._answers.reply(request, message.message_id)
            except Unanswerable as problem:
                reason = str(problem)
            else:
                if reply is None:
                    return "repeated"  # the first message with this id gets the reply
                try:
                    if request.reply.wanted:
                        await asyncio.to_thread(self._queues.reply, reply)
                    return "answered"
                except TooLarge as refusal:
                    stored_at = await self._answers.release(reply.request_id)
                    reason = f"its reply is too large: {refusal} The answer is stored: {stored_at}"
        log.warning("The message %s is a dead letter: %s", message.message_id, reason)
        await asyncio.to_thread(self._queues.bury, message, reason or "")
        return "dead-lettered"
