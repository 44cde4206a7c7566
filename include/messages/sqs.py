"""Answer messages of an Amazon SQS queue, each of which stays there until its reply is sent.

SQS delivers a received message again after the visibility timeout, unless it is deleted. It is deleted here once its
reply (or its dead letter) is on its queue. include/messages/answers.py explains what this guarantees.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException
from pydantic import BaseModel, Field

from include.common.shown import shown_text, shown_url
from include.messages.answers import answer_all
from include.messages.contract import Reply, Request, read_request
from include.messages.model import PromptedModel
from include.messages.refusals import Refused, TooLarge
from include.messages.stored import StoredMessage, store

AWS_CONN_ID = "aws_default"
# After this time a run begins no answer: the messages that are left come back to the next run.
BUDGET_S = 240.0
# SQS's errors for a receipt that is no longer valid: the message has been delivered again, with a new one.
OLD_RECEIPT = ("ReceiptHandleIsInvalid", "InvalidParameterValue")

log = logging.getLogger(__name__)


class Message(BaseModel):
    """A message as SQS delivers it. The receipt is needed to delete it."""

    message_id: str = Field(alias="MessageId", min_length=1, max_length=200)
    receipt: str = Field(alias="ReceiptHandle", min_length=1)
    body: str = Field(alias="Body")

    @property
    def content(self) -> bytes:
        """Return the body's bytes, even if it is not valid Unicode."""
        return self.body.encode("utf-8", "surrogatepass")


def messages_of(events: Iterable[Any]) -> list[Message]:
    """Return the messages in these events (oldest first), each once, with its newest receipt.

    An event that is not from the watcher (anyone with access to the REST API can create one) is left out, with an error
    in the log.
    """
    found = {}
    for event in events:
        if not event.extra:
            continue  # the event by which a run starts its successor
        try:
            messages = [Message.model_validate(each) for each in event.extra["payload"]["message_batch"]]
        except (TypeError, KeyError, ValueError):
            log.error("The event of %s has no messages of the watcher; it is left out.", event.timestamp)
        else:
            found.update({message.message_id: message for message in messages})
    return list(found.values())


async def answer_messages(url: str, folder: str, model: PromptedModel, messages: Sequence[Message]) -> dict[str, Any]:
    """Answer messages that came from the queue `url`, and delete them.

    :param folder: where the answers are stored.
    :return: the counts of `answer_all`, and whether there is a `backlog`: other messages that were received, in events
        that no run has read, or in another run.
    :raises AirflowException: see `answer_all` and `Queues`.
    """
    queues = await asyncio.to_thread(Queues, url)
    counts = await answer_all(messages, queues, model, folder, BUDGET_S)
    hidden = await asyncio.to_thread(queues.hidden)
    return {**counts, "backlog": hidden > counts["left"]}


class Queues:
    """The queue of requests, with `<its URL>-replies` and `<its URL>-dead-letters`: a `Mailbox`.

    :param url: of the queue of requests.
    :raises AirflowFailException: there is no URL.
    :raises Refused: the connection `aws_default` is incomplete, or a queue cannot be used.
    """

    def __init__(self, url: str) -> None:
        if not url:
            raise AirflowFailException("GENAI_SQS_QUEUE is not set for this worker. Set it for every part of Airflow.")
        self.url = url
        self._client: Any = None
        self._largest: dict[str, int] = {}  # bytes of a message with its attributes, by queue
        for each in ("", "-replies", "-dead-letters"):  # before paying for answers that could not be sent
            found = self._call("get_queue_attributes", url + each, AttributeNames=["MaximumMessageSize"])
            self._largest[each] = int(found["Attributes"]["MaximumMessageSize"])

    def hidden(self) -> int:
        """Return about how many messages were received and are not deleted yet."""
        name = "ApproximateNumberOfMessagesNotVisible"
        return int(self._call("get_queue_attributes", self.url, AttributeNames=[name])["Attributes"][name])

    def name(self, message: Message) -> str:
        """Return SQS's id of the message."""
        return message.message_id

    def read(self, message: Message) -> tuple[Request | None, str | None]:
        """Read the request."""
        return read_request(message.content)

    def trace(self, message: Message) -> dict[str, str]:
        """Return an empty dict: Airflow's trigger does not request the attributes of messages."""
        return {}

    async def reply(self, message: Message, reply: Reply) -> None:
        """Send a reply.

        :raises TooLarge: the queue refuses a reply of this size.
        """
        # ASCII, as SQS refuses some characters that JSON allows.
        await asyncio.to_thread(self._send, "-replies", json.dumps(reply.model_dump(mode="json")), {})

    async def bury(self, message: Message, reason: str) -> None:
        """Send a message to the dead letters unchanged, with the reason as an attribute.

        If it is too large with that, it goes to the project's storage, and the dead letter points to it.
        """
        own = {"reason": reason[:1000], "message_id": message.message_id}
        try:
            await asyncio.to_thread(self._send, "-dead-letters", message.body, own)
        except TooLarge:
            whole = StoredMessage(value=message.content)
            pointer = await asyncio.to_thread(store, self.url.rpartition("/")[2], whole)
            await asyncio.to_thread(self._send, "-dead-letters", pointer.model_dump_json(), {**own, "stored": "yes"})

    async def settle(self, message: Message) -> None:
        """Delete the message."""
        await asyncio.to_thread(self._call, "delete_message", self.url, ReceiptHandle=message.receipt)

    def _send(self, ending: str, body: str, attributes: dict[str, str]) -> None:
        typed = {name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()}
        parts = [body, *(part for name, value in attributes.items() for part in (name, "String", value))]
        size = sum(len(part.encode("utf-8", "surrogatepass")) for part in parts)
        if size > self._largest[ending]:
            raise TooLarge(
                f"The queue {shown_url(self.url + ending)} accepts {self._largest[ending]} bytes; a message has {size}."
            )
        self._call("send_message", self.url + ending, MessageBody=body, MessageAttributes=typed)

    def _call(self, operation: str, url: str, **arguments: Any) -> Any:
        # boto takes a second to import, too long for a DAG file.
        from airflow.providers.amazon.aws.hooks.sqs import SqsHook
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client = self._client or SqsHook(aws_conn_id=AWS_CONN_ID).get_conn()
            return getattr(self._client, operation)(QueueUrl=url, **arguments)
        except (BotoCoreError, ClientError) as error:
            code = getattr(error, "response", {}).get("Error", {}).get("Code")
            if operation == "delete_message" and code in OLD_RECEIPT:
                log.warning("A message of %s was not deleted, as SQS has delivered it again.", shown_url(url))
                return None
            raise Refused(
                f"Connection {AWS_CONN_ID!r}, queue {shown_url(url)}: {operation} failed: {shown_text(error)}. Does "
                "the queue exist, in the connection's region, and may this role use it? Nothing is lost: messages "
                "that are not deleted come back."
            ) from None
