"""Answers to requests on the project's storage, by request id: a request that comes again is not paid again."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException
from pydantic import BaseModel, ValidationError

from include.common.storage import storage_path, write_artifact
from include.messages.answerer import Answerer, Unanswerable
from include.messages.contract import Reply

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from include.messages.contract import Request


class StoredAnswer(BaseModel):
    """An answer, and the message that it was given to, by a name that only this message has on its queue.

    `message` is empty where the reply could not be sent: the next message with this id gets it.
    """

    request_id: str
    fingerprint: str
    message: str
    answer: Any
    answered_at: datetime


class RequestAnswers:
    """Answers requests, each id once.

    :param folder: where the answers are stored.
    :param answerer: asks the model.
    """

    def __init__(self, folder: str, answerer: Answerer) -> None:
        self._folder = folder
        self._answerer = answerer
        self._of_id: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def reply(self, request: Request, message: str) -> Reply | None:
        """The reply to a request that came as this message, with the stored answer if it has come before.

        :return: None if another message with this id gets the reply.
        :raises Unanswerable: the model never answers this text, or the id was used for another text.
        :raises AirflowException: what is in the way of all requests: see `Answerer.answer`.
        """
        async with self._of_id[request.request_id]:
            stored = await asyncio.to_thread(read_answer, self._folder, request.request_id)
            if stored is None:
                stored = StoredAnswer(
                    request_id=request.request_id,
                    fingerprint=request.fingerprint(),
                    message="",
                    answer=await self._answerer.answer(request.text),
                    answered_at=datetime.now(UTC),
                )
            if stored.fingerprint != request.fingerprint():
                raise Unanswerable("request_id: it was used for another text before")
            if not stored.message:
                stored.message = message
                await asyncio.to_thread(write_answer, self._folder, stored)
        if stored.message != message:
            return None
        return Reply(
            request_id=request.request_id,
            answer=stored.answer,
            echo=request.reply.echo,
            answered_at=stored.answered_at,
        )

    async def release(self, request_id: str) -> str:
        """Let the next message with this id have the stored answer, as this one's reply cannot be sent.

        :return: the URL of the answer.
        """
        async with self._of_id[request_id]:
            stored = await asyncio.to_thread(read_answer, self._folder, request_id)
            if stored is not None:
                stored.message = ""
                await asyncio.to_thread(write_answer, self._folder, stored)
        return str(answer_path(self._folder, request_id))


def answer_path(folder: str, request_id: str) -> ObjectStoragePath:
    """Where the answer is: ids can be anything, so that the name is a hash, spread over 256 folders."""
    name = hashlib.sha256(request_id.encode()).hexdigest()
    return storage_path(folder, "answers", name[:2], f"{name}.json")


def read_answer(folder: str, request_id: str) -> StoredAnswer | None:
    """The stored answer, or None.

    :raises AirflowFailException: it cannot be understood, which is not the same.
    """
    path = answer_path(folder, request_id)
    try:
        return StoredAnswer.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise AirflowFailException(
            f"The stored answer {path} cannot be read. Delete it to have the request answered again."
        ) from None


def write_answer(folder: str, answer: StoredAnswer) -> None:
    """Store it whole, or not at all."""
    write_artifact(answer_path(folder, answer.request_id), answer.model_dump_json())
