"""The bodies of requests for batches, and what tests may ask of one."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from .reading import Metadata


class BatchRequest(BaseModel):
    """What a client asks for. Fields that the emulator has no use for are ignored."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None


class BatchError(BaseModel):
    """Why a batch fails."""

    model_config = ConfigDict(extra="forbid")

    code: str = "server_error"
    message: str = "This failure was asked for."
    line: int | None = None
    param: str | None = None


class BatchOutcome(BaseModel):
    """What becomes of a batch: `status`, or what it is held in by `hold`, from `after` results on."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["failed", "expired", "cancelled"] | None = None
    error: BatchError | None = None
    hold: str | None = None
    after: Annotated[int, Field(ge=0)] = 0


class NextOutcome(BaseModel):
    """The body of `POST /emulator/batches`."""

    model_config = ConfigDict(extra="forbid")

    outcome: BatchOutcome


class Change(BaseModel):
    """The body of `POST /emulator/batches/{id}`."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["failed", "expired", "cancelled"] | None
