"""Read the ledger: the records of a range of days."""

from __future__ import annotations

from datetime import date, timedelta
from typing import NamedTuple

from pydantic import ValidationError

from include.common.storage import storage_path
from include.spend.ledger import FOLDER, Record


class Reading(NamedTuple):
    """The records of some days, in the order of their start, and how many more could not be read."""

    records: list[Record]
    unreadable: int


def read_days(first: date, last: date) -> Reading:
    """Read the records of the days `first` to `last`, which are of UTC.

    :raises OSError: the storage cannot be read.
    """
    records: dict[str, Record] = {}
    unreadable = 0
    for number in range((last - first).days + 1):
        folder = storage_path(*FOLDER, (first + timedelta(number)).isoformat())
        if not folder.exists():
            continue
        files = [path for path in folder.fs.ls(folder.path, detail=False) if path.endswith(".json")]
        for content in folder.fs.cat(files, on_error="return").values() if files else ():
            if isinstance(content, FileNotFoundError):  # rolled up meanwhile
                continue
            if isinstance(content, Exception):
                raise content
            try:
                record = Record.model_validate_json(content)
            except ValidationError:
                unreadable += 1
                continue
            records[record.id] = record
    return Reading(sorted(records.values(), key=lambda record: record.started), unreadable)
