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
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pydantic import PositiveFloat

from include.ai.connection import PER_MINUTE
from include.ai.rate_limit import Free, RateLimit
from include.common.connection_extra import read_setting
from include.common.exclusive import create_file
from include.common.storage import storage_path

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from include.ai.connection import ModelSource

FOLDER = "account_limits"
# Older entries are removed when there are so many. A process that sleeps between its reading and writing while so many
# are written by others may create a removed one again: its moments are past then, and not used.
MOST_ENTRIES, KEPT_ENTRIES = 300, 100

T = TypeVar("T")


def account_limit(source: ModelSource, at_once: int = 1_000) -> RateLimit | None:
    """Return the limit for a client of this connection; None if the connection states no limits.

    :param at_once: the most calls in flight.
    :raises AirflowFailException: the connection's limits make no sense.
    """
    stated = source.layer_args
    requests, tokens = (read_setting(source.conn_id, stated, key, PositiveFloat) for key in PER_MINUTE)
    if not requests and not tokens:
        return None
    account = json.dumps([source.model_id, source.provider_args], sort_keys=True, default=str)
    log = AccountLog(hashlib.sha256(account.encode()).hexdigest()[:32])
    return RateLimit(requests, tokens, at_once=at_once, account=log)


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
            if create_file(self._path(last.number + 1), json.dumps(free).encode()):
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

    def _path(self, number: int) -> ObjectStoragePath:
        return self._folder / f"{number:012}"
