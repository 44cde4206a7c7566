"""The rounds of a task instance's batch on the project's storage: `batches/<key>/<round>/`.

A round is a batch of the requests that had no answer when it began. Its folder holds the requests sent, the provider's
files unchanged, and, once another round may follow, `closed.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from include.batch_api.api import BatchApi
from include.common.storage import name_on_storage, read_artifact, storage_path, write_artifact
from include.jobs.job import Job

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath


class Rounds:
    """The rounds of the task instance with this key.

    :param max_tries: that of the task instance, which increases when the task is cleared.
    """

    def __init__(self, key: str, max_tries: int) -> None:
        self._folder = storage_path("batches", key)
        self._max_tries = max_tries
        self._closed: list[dict[str, Any]] = []
        with suppress(FileNotFoundError):
            while True:
                self._closed.append(json.loads(read_artifact(self.folder / "closed.json")))

    @property
    def number(self) -> int:
        """Return the number of the open round, from 1."""
        return len(self._closed) + 1

    @property
    def folder(self) -> ObjectStoragePath:
        """Return the folder of the open round."""
        return self._folder / str(self.number)

    @property
    def batches(self) -> list[str]:
        """Return the ids of the batches of all closed rounds."""
        return [batch for closed in self._closed for batch in closed["batches"]]

    def ended_since_clear(self) -> int:
        """Return how many rounds were completed, with or without answers, since the task was last cleared."""
        return sum(closed["ended"] and closed["max_tries"] == self._max_tries for closed in self._closed)

    async def keep(self, api: BatchApi, job: Job) -> None:
        """Store the files of a batch that has ended, as results of the open round."""
        for kind in ("output", "error"):
            path = self.folder / f"{name_on_storage(job.id)}.{kind}.jsonl"
            if (file_id := job.detail[f"{kind}_file_id"]) and not path.exists():
                await api.download(file_id, path)

    def files(self) -> Iterator[ObjectStoragePath]:
        """Yield the provider's files of all closed rounds, the oldest round first."""
        for number in range(1, self.number):
            found = (self._folder / str(number)).iterdir()
            yield from sorted(path for path in found if path.name.endswith((".output.jsonl", ".error.jsonl")))

    def give_up(self) -> None:
        """Note that another batch will follow the open round's one, which is being cancelled."""
        write_artifact(self.folder / "given-up", "")

    @property
    def is_given_up(self) -> bool:
        """Return whether `give_up` was called for the open round."""
        return (self.folder / "given-up").exists()

    def close(self, jobs: list[Job]) -> None:
        """Close the round, whose batches have ended and whose files are stored, and open the next."""
        closed = {
            "batches": [job.id for job in jobs],
            "ended": any(not job.has_no_result for job in jobs),
            "max_tries": self._max_tries,
        }
        write_artifact(self.folder / "closed.json", json.dumps(closed))
        self._closed.append(closed)
