"""The key of a task instance's job, and the job's record on the project's storage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException
from pydantic import BaseModel, ValidationError

from include.common.storage import read_artifact, storage_path, write_artifact
from include.jobs.job import KEY, REQUEST

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath


class Record(BaseModel):
    """What this project remembers of a task instance's job.

    `max_tries` is that of the task instance, which increases when the task is cleared, not at a retry; `killed` says
    that the job was cancelled because the task's own process was killed.
    """

    intent_at: float
    max_tries: int
    job_id: str | None = None
    killed: bool = False


class JobKey:
    """The key of a task instance, the same for all its tries, at the provider and on the project's storage.

    It depends on the storage, as different deployments can have runs of the same name.

    :param part: distinguishes the jobs of a task instance that needs several, one after the other.
    """

    def __init__(self, ti: Any, part: str = "") -> None:
        self.names = {
            "airflow_dag_id": ti.dag_id,
            "airflow_run_id": ti.run_id,
            "airflow_task_id": ti.task_id,
        }
        parts = [str(storage_path()), ti.dag_id, ti.run_id, ti.task_id, str(ti.map_index), *([part] if part else [])]
        self.max_tries = ti.max_tries
        self.value = hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def metadata(self, request: Mapping[str, Any]) -> dict[str, str]:
        """Return the metadata of a job for this request."""
        names = {name: value[:500] for name, value in self.names.items()}
        return {**names, KEY: self.value, REQUEST: fingerprint(request)}


def fingerprint(request: Mapping[str, Any]) -> str:
    """Return a digest that is equal only for equal requests."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:32]


def record_path(key: str) -> ObjectStoragePath:
    """Return the path of the record of a task instance's job."""
    return storage_path("jobs", f"{key}.json")


def read_record(key: str) -> Record | None:
    """Read the record; None if there is none.

    :raises AirflowFailException: the record is not valid. A job may be under way, so this does not count as none.
    """
    path = record_path(key)
    try:
        return Record.model_validate_json(read_artifact(path))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise AirflowFailException(
            f"The record of this task's job, {path}, is not valid. Check at the provider whether a job of this run is "
            "under way, delete the file, and clear the task."
        ) from None


def write_record(key: str, record: Record) -> None:
    """Write the record."""
    write_artifact(record_path(key), record.model_dump_json())


def mark_killed(key: str) -> None:
    """Note that the job was cancelled because its task's process was killed: the next try starts a new job."""
    if record := read_record(key):
        write_record(key, record.model_copy(update={"killed": True}))
