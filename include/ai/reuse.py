"""Ask once, pay once: an answer is on object storage before it counts, so that a retry finds it and pays nothing.

`llm_kwargs(reuse=...)` says who may reuse it: `"retries"` of the same task (the default; a cleared task asks again),
all tasks of the same `"run"`, all tasks that make the same call within a `timedelta`, or, with `"try"`, none.

The same call has the same connection, host, model, settings, messages, tools and form of the answer. If a task makes
the same call several times, its n-th call finds the n-th answer. Answers stay on the storage until `include.ai.forget`
deletes them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict
from pydantic_ai.exceptions import AgentRunError
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings

from include.ai.attempt import Attempt, TaskAttempt, begun_attempt, keep_answer, this_attempt
from include.ai.layers import LayeredModel
from include.ai.same_call import what_decides
from include.common.shown import shown_text
from include.common.storage import name_on_storage, read_artifact, write_artifact
from include.common.task_ends import on_task_end

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from include.ai.connection import ModelSource

RETRIES, RUN, TRY = "retries", "run", "try"
LONGEST = timedelta(days=36500)  # a date has its limits

_has_warned = False

log = logging.getLogger(__name__)


class StoredAnswer(BaseModel):
    """An answer on the storage. `asked_by` is the attempt that paid for it."""

    model_config = ConfigDict(hide_input_in_errors=True, ser_json_bytes="base64", val_json_bytes="base64")

    answered_at: AwareDatetime
    conn_id: str
    asked_by: dict[str, str | int]
    response: ModelResponse


class ReusingModel(LayeredModel):
    """The model of a connection and its fallbacks, which is only asked what has no stored answer yet.

    :param reuse: who may reuse the answers: see the module.
    :param attempt: who asks, if not the running task.
    :raises ValueError: `reuse` is not valid.
    """

    def __init__(self, model: LayeredModel, reuse: str | timedelta, attempt: Attempt | None = None) -> None:
        if reuse not in (RETRIES, RUN, TRY) and not (isinstance(reuse, timedelta) and reuse > timedelta(0)):
            raise ValueError(f"reuse={reuse!r}: it must be 'try', 'retries', 'run', or a timedelta of more than 0.")
        super().__init__(model.conn_id)
        self._model = model
        self._reuse = reuse
        self._given_attempt = attempt

    @property
    def models(self) -> list[LayeredModel]:
        """The models that may answer."""
        return self._model.models

    @cached_property
    def source(self) -> ModelSource:
        """The contents of the connection."""
        return self._model.source

    @property
    def wrapped(self) -> Model:  # type: ignore[override]
        """The model that is asked."""
        return self._model

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Return the stored answer, or ask and store.

        :raises AirflowFailException: no retry of the task can help.
        :raises AirflowException: a later try may succeed.
        """
        asked = (messages, model_settings, model_request_parameters)
        attempt = self._given_attempt or (_attempt_or_warn() if self._reuse != TRY else None)
        if attempt is None:
            return await self._model.request(*asked)
        call = Call(attempt, self._reuse, [model.source for model in self.models], *asked)
        if stored := await call.recall():
            model = next(model for model in self.models if model.conn_id == stored.conn_id)
            model.record_reused(messages, model_request_parameters, stored.response)
            return stored.response
        token = keep_answer.set(call.keep)
        try:
            return await self._model.request(*asked)
        finally:
            keep_answer.reset(token)


class Call:
    """A call that may already have a stored answer.

    :param sources: the connections that may answer it, in order.
    """

    def __init__(
        self,
        attempt: Attempt,
        reuse: str | timedelta,
        sources: Sequence[ModelSource],
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> None:
        self._attempt = attempt
        self._not_before = datetime.now(UTC) - min(reuse, LONGEST) if isinstance(reuse, timedelta) else None
        # After the first request, anything but a tool's result is feedback about a wrong answer.
        self._is_repeated = len(messages) > 1 and any(
            getattr(part, "outcome", "retried") == "retried" for part in messages[-1].parts
        )
        self._is_first = reuse == RETRIES and attempt.is_first
        decided = what_decides(messages, settings, parameters)
        self._files: dict[str, ObjectStoragePath] = {}
        for source in sources:
            name = [source.conn_id, source.model_id, source.provider_args.get("base_url")]
            key = sha256(json.dumps(name).encode() + decided).hexdigest()[:32]
            file = f"{key}-{attempt.number(key)}.json"
            if reuse == RETRIES:
                self._files[source.conn_id] = attempt.of_task / file
            elif reuse == RUN:
                self._files[source.conn_id] = attempt.of_run / file
            else:
                self._files[source.conn_id] = attempt.shared / name_on_storage(source.conn_id) / key[:2] / file

    async def recall(self) -> StoredAnswer | None:
        """Return the stored answer; None if there is none that can be used.

        A retry also reuses what a fallback answered. With a `timedelta`, only the connection asked first counts.
        """
        files = [] if self._is_first else list(self._files.items())
        for conn_id, file in files[:1] if self._not_before else files:
            if stored := await asyncio.to_thread(_read, file, conn_id):
                if self._not_before and stored.answered_at < self._not_before:
                    continue
                stored.response.metadata = {
                    **(stored.response.metadata or {}),
                    "reused_from": {
                        **stored.asked_by,
                        "answered_at": stored.answered_at.isoformat(),
                        "conn_id": stored.conn_id,
                        "file": file.name,
                    },
                }
                self._attempt.last_answers.append((file, self._is_repeated))
                return stored
        return None

    async def keep(self, source: ModelSource, response: ModelResponse) -> None:
        """Store an answer. If that fails, the task goes on, because the answer is paid."""
        file = self._files[source.conn_id]
        stored = StoredAnswer(
            answered_at=datetime.now(UTC), conn_id=source.conn_id, asked_by=self._attempt.asked_by, response=response
        )
        try:
            await asyncio.to_thread(write_artifact, file, stored.model_dump_json())
        except Exception as error:
            _warn(error)
        self._attempt.last_answers.append((file, self._is_repeated))


def _read(file: ObjectStoragePath, conn_id: str) -> StoredAnswer | None:
    try:
        stored = StoredAnswer.model_validate_json(read_artifact(file))
        if stored.conn_id != conn_id:
            raise ValueError("It was stored under another connection.")
        return stored
    except FileNotFoundError:
        return None
    except ValueError:
        log.warning("The stored answer %s cannot be read, so the model is asked again.", file)
    except Exception as error:
        _warn(error)
    return None


def _attempt_or_warn() -> TaskAttempt | None:
    try:
        attempt = this_attempt()
    except Exception as error:
        _warn(error)
        return None
    if attempt:
        _listen()
    return attempt


def _warn(error: Exception) -> None:
    global _has_warned
    if not _has_warned:
        log.warning("The task goes on, but its retry may pay for answers again: %s", shown_text(error))
    _has_warned = True


def _forget_what_failed(attempt_id: str, state: str, error: Any) -> None:
    """Remove the answers that made a task fail, so that its retry does not fail on them again."""
    attempt = begun_attempt(attempt_id)
    if attempt and state == "failed" and isinstance(error, AgentRunError):
        attempt.forget_last_answers()


@cache
def _listen() -> None:
    on_task_end(_forget_what_failed)
