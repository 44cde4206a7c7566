"""An account's limits per minute, which the tasks of all workers share through a log on the project's storage.

A connection's extra sets them: `"requests_per_minute"`, `"tokens_per_minute"`. An account is the host, key and model of
a connection. Each entry of its log says until when the account is used. To send requests, a process reads the last
entry and creates the next one, later by what these requests use. The storage creates a name only once, so each moment
goes to one process; a process that lost the race for a name reads again.

Moments follow the workers' clocks. If these differ by some seconds, a minute may hold the requests of that many more
seconds. A killed process loses its moments: at most `AHEAD_S` of `include.ai.rate_limit`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from pydantic import PositiveFloat

from include.ai.connection import PER_MINUTE
from include.ai.rate_limit import Free, RateLimit
from include.common.connection_extra import read_setting
from include.common.exclusive import create_file, names_in
from include.common.storage import storage_path

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from include.ai.connection import ModelSource

FOLDER = "account_limits"
# Older entries are removed at MOST_ENTRIES. A process that sleeps between reading and writing while others write that
# many may create a removed entry again: its moments have passed by then, and are not used.
MOST_ENTRIES, KEPT_ENTRIES = 300, 100

T = TypeVar("T")


def account_limit(source: ModelSource, at_once: int = 1_000) -> RateLimit | None:
    """Return the limit for a client of this connection; None if the connection sets no limits.

    :param at_once: the most calls in flight.
    :raises AirflowFailException: the connection's limits are not valid.
    """
    stated = source.layer_args
    requests, tokens = (read_setting(source.conn_id, stated, key, PositiveFloat) for key in PER_MINUTE)
    if not requests and not tokens:
        return None
    account = json.dumps([source.model_id, source.provider_args], sort_keys=True, default=str)
    log = AccountLog(hashlib.sha256(account.encode()).hexdigest()[:32])
    return RateLimit(requests, tokens, at_once=at_once, account=log)


class AccountLog:
    """The log of one account. Its times are in seconds since the epoch.

    :param name: identifies the account and reveals no secret.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    @cached_property
    def _folder(self) -> ObjectStoragePath:
        return storage_path(FOLDER, self._name)

    def append(self, use: Callable[[Free, float], tuple[T, Free]]) -> T:
        """Use the account's time: append an entry to the log.

        :param use: takes when the account is free and the time now; returns any value, and when the account is free
            afterwards. It is called again if another process was faster.
        :return: the value.
        :raises Exception: the storage's own, if it cannot be read or written.
        """
        while True:
            number, last = self._last()
            value, free = use(last, time.time())
            if create_file(self._path(number + 1), json.dumps(free).encode()):
                return value

    def _last(self) -> tuple[int, Free]:
        """Read the last entry and its number, and remove old entries when there are many."""
        fs = self._folder.fs
        numbers = sorted(int(name) for name in names_in(self._folder) if name.isdigit())
        if not numbers:
            return 0, Free()
        if len(numbers) > MOST_ENTRIES:
            with suppress(OSError):  # another process may remove them, too
                fs.rm([self._path(number).path for number in numbers[:-KEPT_ENTRIES]])
        try:
            free = Free(*json.loads(fs.cat_file(self._path(numbers[-1]).path)))
        except (ValueError, TypeError):  # a machine that crashed may leave an empty file
            free = Free()
        return numbers[-1], free

    def _path(self, number: int) -> ObjectStoragePath:
        return self._folder / f"{number:012}"
