"""What outlives the process: files, jobs and batches, in SQLite and a folder.

Only the server's event loop uses the database: what a method does is done before another request is looked at.
"""

import json
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from local.api_error import ApiError

from .life import Job

# The purpose of the files in which jobs leave their results.
RESULTS = "fine-tune-results"
_PAGE = 500
_TABLES = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    purpose TEXT NOT NULL,
    size INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    job TEXT
);
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tuned_model TEXT NOT NULL,
    training_file TEXT NOT NULL,
    metadata TEXT,
    record TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    record TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS jobs_by_model ON jobs (tuned_model);
CREATE INDEX IF NOT EXISTS jobs_by_file ON jobs (training_file);
"""


def new_id(kind: str) -> str:
    """Such as `ftjob-` and 24 hex digits."""
    return f"{kind}-{secrets.token_hex(12)}"


class File(NamedTuple):
    """A file. One with a `job` is that job's results: it is there once the job has succeeded, and is never stored."""

    id: str
    name: str
    purpose: str
    size: int
    created_at: int
    job: str | None = None


class Store:
    """Files, jobs and batches in a folder, which is made if need be."""

    def __init__(self, folder: Path) -> None:
        self.uploads = folder / "uploads"
        self._kept = folder / "files"
        self.answers = folder / "answers"
        shutil.rmtree(self.uploads, ignore_errors=True)
        for each in (self.uploads, self._kept, self.answers):
            each.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(folder / "emulator.db", isolation_level=None, check_same_thread=False)
        self._database.executescript(_TABLES)

    def content(self, file: str) -> Path:
        """Where the bytes of an uploaded file are."""
        return self._kept / file

    def add_file(self, file: File) -> None:
        """Keep what is known of a file."""
        columns = "(id, name, purpose, size, created_at, job)"
        self._database.execute(f"INSERT INTO files {columns} VALUES (?, ?, ?, ?, ?, ?)", file)  # noqa: S608

    def file(self, file: str) -> File | None:
        """The file of this id."""
        return next((each for _, each in self._files("id = ?", [file], "DESC")), None)

    def files(self, purpose: str | None, after: str | None, descending: bool) -> Iterator[File]:
        """Files in order of creation, after the one with this id."""
        compared, order = ("<", "DESC") if descending else (">", "ASC")
        where, values = ("purpose = ?", [purpose]) if purpose else ("purpose != ?", [""])
        number = self._number("files", after, descending)
        while True:
            page = self._files(f"{where} AND number {compared} ?", [*values, number], order)
            yield from (file for _, file in page)
            if len(page) < _PAGE:
                return
            number = page[-1][0]

    def delete_file(self, file: str) -> None:
        """Forget a file. Its bytes stay as long as there are jobs that learned from it."""
        self._database.execute("DELETE FROM files WHERE id = ?", [file])
        if not self._database.execute("SELECT 1 FROM jobs WHERE training_file = ?", [file]).fetchone():
            self.content(file).unlink(missing_ok=True)

    def add_job(self, job: Job, results: File) -> None:
        """Keep a job and the file of its results, both or neither."""
        columns = "(id, tuned_model, training_file, metadata, record)"
        metadata = None if job.metadata is None else json.dumps(job.metadata)
        row = [job.id, job.tuned_model, job.training_file, metadata, json.dumps(job.record())]
        self._database.execute("BEGIN IMMEDIATE")
        with self._database:
            self._database.execute(f"INSERT INTO jobs {columns} VALUES (?, ?, ?, ?, ?)", row)  # noqa: S608
            self.add_file(results)

    def save_job(self, job: Job) -> None:
        """Keep a job that has changed."""
        self._database.execute("UPDATE jobs SET record = ? WHERE id = ?", [json.dumps(job.record()), job.id])

    def job(self, job: str) -> Job:
        """The job of this id; an `ApiError` if there is none."""
        for found in self._jobs("id = ?", [job]):
            return found
        message = f"Could not find fine tune: {job}"
        raise ApiError(message, param="fine_tuning_job_id", code="fine_tune_not_found", status=404)

    def job_of_model(self, model: str) -> Job | None:
        """The job that makes the model of this name."""
        return next(iter(self._jobs("tuned_model = ?", [model])), None)

    def jobs(
        self,
        after: str | None = None,
        metadata: dict[str, str] | None = None,
        no_metadata: bool = False,
        most: int = -1,
    ) -> list[Job]:
        """Jobs, the newest first, after the one with this id; those with all of `metadata`, or those with none."""
        where = ["number < ?"]
        values: list[Any] = [self._number("jobs", after, descending=True)]
        for pair in (metadata or {}).items():
            where.append("EXISTS (SELECT 1 FROM json_each(metadata) WHERE key = ? AND value = ?)")
            values.extend(pair)
        if no_metadata:
            where.append("metadata IS NULL")
        return self._jobs(" AND ".join(where), values, most)

    def add_batch(self, batch: dict[str, Any]) -> None:
        """Keep a new batch."""
        self._database.execute("INSERT INTO batches (id, record) VALUES (?, ?)", [batch["id"], json.dumps(batch)])

    def save_batch(self, batch: dict[str, Any], *results: File) -> None:
        """Keep a batch that has changed, and the files of its results, all or nothing."""
        self._database.execute("BEGIN IMMEDIATE")
        with self._database:
            self._database.execute("UPDATE batches SET record = ? WHERE id = ?", [json.dumps(batch), batch["id"]])
            for file in results:
                self.add_file(file)

    def batch(self, batch: str) -> dict[str, Any]:
        """The batch of this id; an `ApiError` if there is none."""
        row = self._database.execute("SELECT record FROM batches WHERE id = ?", [batch]).fetchone()
        if row is None:
            raise ApiError(f"No batch found with id '{batch}'.", param="batch_id", status=404)
        return dict(json.loads(row[0]))

    def batches(self, after: str | None = None, most: int = -1) -> list[dict[str, Any]]:
        """Batches, the newest first, after the one with this id."""
        number = self._number("batches", after, descending=True)
        query = "SELECT record FROM batches WHERE number < ? ORDER BY number DESC LIMIT ?"
        return [dict(json.loads(record)) for (record,) in self._database.execute(query, [number, most])]

    def _number(self, table: str, after: str | None, descending: bool) -> int:
        """The cursor `after`, which may be of anything that was there once, as a row's number."""
        start = 2**62 if descending else 0
        if after is None:
            return start
        row = self._database.execute(f"SELECT number FROM {table} WHERE id = ?", [after]).fetchone()  # noqa: S608
        if row is None:
            raise ApiError(f"There is no {after} in this list.", param="after")
        return int(row[0])

    def _files(self, where: str, values: list[Any], order: str) -> list[tuple[int, File]]:
        columns = "number, id, name, purpose, size, created_at, job"
        query = f"SELECT {columns} FROM files WHERE {where} ORDER BY number {order} LIMIT {_PAGE}"  # noqa: S608
        return [(row[0], File(*row[1:])) for row in self._database.execute(query, values)]

    def _jobs(self, where: str, values: list[Any], most: int = 1) -> list[Job]:
        query = f"SELECT record FROM jobs WHERE {where} ORDER BY number DESC LIMIT {most}"  # noqa: S608
        return [Job.of(json.loads(record)) for (record,) in self._database.execute(query, values)]
