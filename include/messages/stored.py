"""Messages that are too large for a dead letter, kept whole on the project's storage."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict, ValidationError

from include.common.storage import name_on_storage, read_artifact, storage_path, write_artifact
from include.common.stored_files import stored_file

FOLDER = "dead_letters"


class StoredMessage(BaseModel):
    """A message as it was received; in the file, bytes are base64."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", hide_input_in_errors=True)

    value: bytes | None
    key: bytes | None = None
    headers: list[tuple[str, bytes | None]] = []


class Pointer(BaseModel):
    """What a dead letter contains instead of the message."""

    stored_at: str
    value_bytes: int
    sha256: str


def store(source: str, message: StoredMessage) -> Pointer:
    """Write a message of the topic or queue `source`, whole or not at all. The same message is stored once."""
    content = message.model_dump_json().encode()
    sha256 = hashlib.sha256(content).hexdigest()
    path = storage_path(FOLDER, name_on_storage(source), f"{sha256}.json")
    return Pointer(stored_at=write_artifact(path, content), value_bytes=len(message.value or b""), sha256=sha256)


def fetch(pointer: str | bytes) -> StoredMessage:
    """Read the message that a pointer, as JSON, points to.

    :raises ValueError: it points to no message on this project's storage, or the file was changed or deleted.
    """
    try:
        to = Pointer.model_validate_json(pointer)
    except ValidationError:
        raise ValueError("its pointer to the storage cannot be read") from None
    try:
        content = read_artifact(stored_file(to.stored_at))
    except FileNotFoundError:
        raise ValueError(f"{to.stored_at} does not exist") from None
    if hashlib.sha256(content).hexdigest() != to.sha256:
        raise ValueError(f"{to.stored_at} is not what was stored: its SHA-256 differs")
    try:
        return StoredMessage.model_validate_json(content)
    except ValidationError:
        raise ValueError(f"{to.stored_at} is not a stored message") from None
