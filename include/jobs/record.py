"""Whose a job is, and what this project remembers of it on its storage."""

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

    `max_tries` is Airflow's number for the task instance, which rises when somebody clears it, and not at a retry;
    `killed`: the job was cancelled because the task's own process was.
    """

    intent_at: float
    max_tries: int
    job_id: str | None = None
    killed: bool = False


class JobKey:
    """A task instance, over all its tries, as the provider and the project's storage know it.

    Deployments with different storage have different keys, as they can have runs of the same name.

    :param part: tells the jobs of a task instance that needs several, one after the other.
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
    """Return a digest that is the same for equal requests only."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:32]


def record_path(key: str) -> ObjectStoragePath:
    """Return where the record of a task instance's job is."""
    return storage_path("jobs", f"{key}.json")


def read_record(key: str) -> Record | None:
    """Read the record; None if there is none.

    :raises AirflowFailException: it cannot be understood, which is not the same: a job may be under way.
    """
    path = record_path(key)
    try:
        return Record.model_validate_json(read_artifact(path))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise AirflowFailException(
            f"The record of this task's job, {path}, cannot be read. See at the provider whether a job of this run "
            "is under way, delete the file, and clear the task."
        ) from None


def write_record(key: str, record: Record) -> None:
    """Write the record."""
    write_artifact(record_path(key), record.model_dump_json())


def mark_killed(key: str) -> None:
    """Note that the job was cancelled with its task's process: the next try starts a new one."""
    if record := read_record(key):
        write_record(key, record.model_copy(update={"killed": True}))
