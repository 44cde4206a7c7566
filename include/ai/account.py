"""An account's limits per minute, which all tasks on all workers keep together by a log on the project's storage.

The extra of a connection states them: `"requests_per_minute"`, `"tokens_per_minute"`. An account is the host, key and
model of a connection. Each entry of its log says up to which moment the account is used. Whoever wants to send requests
reads the last entry and creates the next one, further on by what these requests use. The storage creates a name only
once, so each moment is given to one process; one that came too late for a name reads again.

Moments are by the clocks of the workers. Where these differ by some seconds, a minute may hold the requests of as many
seconds more. A killed process loses its moments: at most `AHEAD_S` of `include.ai.rate_limit`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from uuid import uuid4

from airflow.providers.common.compat.sdk import AirflowFailException
from pydantic import BaseModel, PositiveFloat, ValidationError

from include.ai.rate_limit import Free, RateLimit
from include.common.storage import storage_path

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from include.ai.connection import ModelSource

FOLDER = "account_limits"
# Older entries are removed when there are so many. A process that sleeps between its reading and writing while so many
# are written by others may create a removed one again: its moments are past then, and not used.
MOST_ENTRIES, KEPT_ENTRIES = 300, 100

T = TypeVar("T")


class AccountLimits(BaseModel):
    """What a connection's extra says of the account's limits; None: no limit."""

    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None


def read_limits(source: ModelSource) -> AccountLimits:
    """Read the account's limits.

    :raises AirflowFailException: they make no sense.
    """
    try:
        return AccountLimits.model_validate(source.layer_args)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise AirflowFailException(f"Connection {source.conn_id!r}, extra: {'; '.join(problems)}.") from None


def account_limit(source: ModelSource, at_once: int = 1_000) -> RateLimit | None:
    """Return the limit for a client of this connection; None if the connection states no limits.

    :param at_once: the most calls in flight.
    :raises AirflowFailException: the connection's limits make no sense.
    """
    limits = read_limits(source)
    per_minute = limits.requests_per_minute, limits.tokens_per_minute
    if not any(per_minute):
        return None
    account = json.dumps([source.model_id, source.provider_args], sort_keys=True, default=str)
    log = AccountLog(hashlib.sha256(account.encode()).hexdigest()[:32])
    return RateLimit(*per_minute, at_once=at_once, account=log)


class Entry(NamedTuple):
    """The last entry of a log: its number, and up to when the account is used, in seconds since the epoch."""

    number: int
    free: Free


class AccountLog:
    """The log of one account.

    :param name: the account's, which no secret can be read from.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    @cached_property
    def _folder(self) -> ObjectStoragePath:
        return storage_path(FOLDER, self._name)

    def append(self, use: Callable[[Free, float], tuple[T, Free]]) -> T:
        """Use the account's time: append an entry to the log.

        :param use: given from when on the account is free, and the time now, returns any value and from when on it is
            free afterwards. It is called again where another process was faster.
        :return: the value.
        :raises Exception: the storage's own, where it cannot be read or written.
        """
        while True:
            last = self._last()
            value, free = use(last.free, time.time())
            if self._create(last.number + 1, free):
                return value

    def _last(self) -> Entry:
        """Read the last entry, and remove old ones when there are many."""
        fs = self._folder.fs
        try:
            names = [path.rsplit("/", 1)[-1] for path in fs.ls(self._folder.path, detail=False)]
        except FileNotFoundError:
            names = []
        numbers = sorted(int(name) for name in names if name.isdigit())
        if not numbers:
            return Entry(0, Free())
        if len(numbers) > MOST_ENTRIES:
            with suppress(OSError):  # another process removes them, too
                fs.rm([self._path(number).path for number in numbers[:-KEPT_ENTRIES]])
        try:
            free = Free(*json.loads(fs.cat_file(self._path(numbers[-1]).path)))
        except (ValueError, TypeError):  # a machine that went down may leave an empty file
            free = Free()
        return Entry(numbers[-1], free)

    def _create(self, number: int, free: Free) -> bool:
        """Write the entry with this number, whole or not at all; return False if another process has written it."""
        path, content = self._path(number), json.dumps(free).encode()
        try:
            if path.protocol == "file":
                _link_new(Path(path.path), content)
            else:
                path.fs.pipe_file(path.path, content, mode="create")
        except OSError:  # not each storage says FileExistsError
            if path.exists():
                return False
            raise
        return True

    def _path(self, number: int) -> ObjectStoragePath:
        return self._folder / f"{number:012}"


def _link_new(path: Path, content: bytes) -> None:
    """Write a local file that is not there yet.

    :raises FileExistsError: it is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{uuid4().hex}.part")
    try:
        part.write_bytes(content)
        os.link(part, path)
    finally:
        part.unlink(missing_ok=True)
