"""Answers to requests on the project's storage, by request id: a request that comes again is not paid again."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException
from pydantic import BaseModel, ValidationError

from include.storage import storage_path, write_artifact

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath


class StoredAnswer(BaseModel):
    """An answer, and the message that it was given to."""

    request_id: str
    fingerprint: str
    topic: str
    partition: int
    offset: int
    answer: Any
    answered_at: datetime


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
