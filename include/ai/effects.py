"""Tools with an outside effect, which a retry of the agent must not repeat.

    agent_kwargs(tools=[search_rules, effect(refund, idempotent=True), effect(write_to_customer)])

A note is written to object storage before such a tool runs, and then its result. A retry of the task gives that result
to the model and does not run the tool. If there is a note but no result, the worker died in between and the outcome is
unknown, and the model learns that. An idempotent tool runs again instead, with the same `effect_key`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_ai import ModelRetry, RunContext
from pydantic_core import to_jsonable_python

from include.ai.attempt import TaskAttempt, this_attempt
from include.common.exclusive import create_file
from include.common.shown import shown_text
from include.common.storage import read_artifact, write_artifact

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

UNKNOWN = (
    "It is unknown whether this was done: the worker stopped while the tool ran. It was not repeated. "
    "Say so in your answer; do not call the tool again for the same purpose."
)

_key: ContextVar[str] = ContextVar("_key", default="")

log = logging.getLogger(__name__)


class Effect(BaseModel):
    """The note of an effect. `begun_by` is the attempt that ran the tool; without `done` it has not returned."""

    model_config = ConfigDict(hide_input_in_errors=True)

    tool: str
    begun_by: dict[str, str | int]
    done: bool = False
    result: Any = None


def effect_key() -> str:
    """Return, within a tool with an effect, a key of this effect for the service (`Idempotency-Key`).

    It is the same in all tries of a task, even after a clear, and empty outside a task.
    """
    return _key.get()


def effect(tool: Callable[..., Any], *, idempotent: bool = False) -> Callable[..., Any]:
    """Return a tool for an agent that runs this function once in all tries of the task.

    A function that raises `ModelRetry` has had no effect. After any other error, this is unknown.

    :param tool: its result becomes JSON. If the model calls it twice with the same arguments, it runs twice.
    :param idempotent: whether it may run again with the same arguments and `effect_key`.
    :raises AirflowException: (when called) the storage cannot be read or written, so the tool has not run.
    """

    @wraps(tool)
    async def once(*args: Any, **kwargs: Any) -> Any:
        attempt = this_attempt()
        if attempt is None:
            return await _run(tool, args, kwargs)
        arguments = inspect.signature(tool).bind(*args, **kwargs).arguments
        return await _once(attempt, tool, idempotent, arguments, lambda: _run(tool, args, kwargs))

    return once


async def _once(
    attempt: TaskAttempt, tool: Callable[..., Any], idempotent: bool, arguments: dict[str, Any], run: Callable[[], Any]
) -> Any:
    name = tool.__name__
    plain = {key: value for key, value in arguments.items() if not isinstance(value, RunContext)}
    asked = json.dumps(to_jsonable_python([name, plain], serialize_unknown=True), sort_keys=True)
    key = sha256(asked.encode()).hexdigest()[:32]
    file = attempt.of_task / f"effect-{key}-{attempt.number(key)}.json"
    note = Effect(tool=name, begun_by=attempt.asked_by)
    try:
        known = await asyncio.to_thread(_begin, file, note)
    except Exception as error:
        raise AirflowException(
            f"The tool {name!r} has not run, because its note cannot be written to GENAI_STORAGE: {shown_text(error)}"
        ) from None
    if known and known.done:
        log.info("The tool %s does not run again: its result is stored.", name)
        return known.result
    if known and not idempotent:
        log.warning("The tool %s was running when a worker stopped. It does not run again: see %s.", name, file)
        return UNKNOWN
    token = _key.set(sha256(json.dumps([attempt.task, file.name]).encode()).hexdigest()[:32])
    try:
        note.result = to_jsonable_python(await run())
    except ModelRetry:
        await asyncio.to_thread(file.fs.rm_file, file.path)
        raise
    finally:
        _key.reset(token)
    note.done = True
    try:
        await asyncio.to_thread(write_artifact, file, note.model_dump_json())
    except Exception as error:
        log.warning("The tool %s has run, but its result is not stored: %s", name, shown_text(error))
    return note.result


def _begin(file: ObjectStoragePath, note: Effect) -> Effect | None:
    """Write the note of an effect; if one exists already, return that."""
    if create_file(file, note.model_dump_json().encode()):
        return None
    try:
        return Effect.model_validate_json(read_artifact(file))
    except ValidationError:
        return note  # the tool was started; nothing else is known


async def _run(tool: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if inspect.iscoroutinefunction(tool):
        return await tool(*args, **kwargs)
    return await asyncio.to_thread(tool, *args, **kwargs)
