"""What outlives the process: files, jobs and batches, in a folder. Used only by the server's event loop."""

import os
import secrets
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from local.api_error import ApiError

# The caller's own data at a job or a batch.
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
End = Literal["succeeded", "failed", "cancelled", "expired"]


class Outcome(BaseModel):
    """What a test wants to happen to a job or a batch; see the package's docstring."""

    model_config = ConfigDict(extra="forbid")

    status: End | None = None
    error: dict[str, Any] | None = None
    hold: str | None = None
    after: int = 0


class Kept(BaseModel):
    """A job or a batch.

    :param shown: as the provider's clients see it.
    :param began: when it was created, in seconds since the epoch.
    :param events: of a job, the oldest first.
    """

    shown: dict[str, Any]
    outcome: Outcome
    began: float = 0.0
    events: list[dict[str, Any]] = []


class _State(BaseModel):
    files: dict[str, dict[str, Any]] = {}
    jobs: dict[str, Kept] = {}
    batches: dict[str, Kept] = {}


class Store:
    """Files, jobs and batches in a folder, which is created if missing."""

    def __init__(self, folder: Path) -> None:
        self._contents = folder / "files"
        self._contents.mkdir(parents=True, exist_ok=True)
        self._path = folder / "state.json"
        state = _State.model_validate_json(self._path.read_bytes()) if self._path.exists() else _State()
        self._state, self.files, self.jobs, self.batches = state, state.files, state.jobs, state.batches

    def save(self) -> None:
        """Write everything to the folder, atomically."""
        new = self._path.with_suffix(".new")
        new.write_text(self._state.model_dump_json())
        os.replace(new, self._path)

    def content(self, file: str) -> Path:
        """Return where the bytes of a file are. They stay when it is deleted, for the models tuned with it."""
        return self._contents / file

    def add_file(self, name: str, purpose: str, content: bytes) -> dict[str, Any]:
        """Store a file, and return it as the provider shows it."""
        file = {
            "id": new_id("file-"),
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
            "expires_at": None,
        }
        self.content(str(file["id"])).write_bytes(content)
        self.files[str(file["id"])] = file
        self.save()
        return file

    def input_file(self, file: str, purpose: str, param: str) -> str:
        """Return the id of a file, checked for this purpose.

        :param param: of the request, which names the file.
        :raises ApiError: there is no such file, or it has another purpose.
        """
        if file not in self.files:
            raise ApiError(f"{param} {file}: no such file", param=param, code="invalid_file")
        if (found := self.files[file]["purpose"]) != purpose:
            raise ApiError(f"{param} {file}: its purpose is {found}, not {purpose}", param=param)
        return file


def new_id(prefix: str) -> str:
    """Return the prefix and 24 hex digits."""
    return prefix + secrets.token_hex(12)


def page(newest_first: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """Return a page of a list: `limit` items, after the one with the id `after`."""
    start = next((i + 1 for i, each in enumerate(newest_first) if each["id"] == after), 0)
    end = start + limit
    return {"object": "list", "data": newest_first[start:end], "has_more": end < len(newest_first)}
