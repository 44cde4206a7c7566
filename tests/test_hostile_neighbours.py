"""Two at once: runs of one batch, of which one only may pay for a row."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse

from include.batch.claim import claim
from include.common.storage import storage_path
from tests.storages import on_storage

RUNS = 8


class Task:
    """A task of a run, in an Airflow that knows these states of runs."""

    dag_id = "batch_inference_at_scale"

    def __init__(self, run_id: str, states: dict[str, str]) -> None:
        self.run_id, self._states = run_id, states

    def get_dagrun_state(self, dag_id: str, run_id: str) -> str:
        assert dag_id == self.dag_id
        if run_id not in self._states:
            detail = {"status_code": 404, "message": "not found"}
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail))
        return self._states[run_id]


@on_storage("disk", "s3")
def test_of_many_runs_that_begin_a_batch_together_one_has_it(storage):
    states = {f"run {n}": "running" for n in range(RUNS)}

    def try_to_claim(run_id: str) -> str:
        try:
            claim(storage_path("batch"), Task(run_id, states))
        except AirflowFailException as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(states)) as pool:
        refused = dict(zip(states, pool.map(try_to_claim, states), strict=True))
    (winner,) = [run_id for run_id, reason in refused.items() if not reason]
    for run_id in states.keys() - {winner}:
        assert f"The run {winner!r} of batch_inference_at_scale is answering this batch" in refused[run_id]
    claim(storage_path("batch"), Task(winner, states))  # each of its tasks does so


@pytest.mark.parametrize("state", ["success", "failed", None])
@on_storage("disk")
def test_a_batch_is_free_when_its_run_has_ended_or_was_deleted_and_taken_again_if_it_is_cleared(storage, state):
    states: dict[str, Any] = {"first": "running", "second": "running"}
    claim(storage_path("batch"), Task("first", states))
    with pytest.raises(AirflowFailException, match="The run 'first'"):
        claim(storage_path("batch"), Task("second", states))
    states.pop("first") if state is None else states.update(first=state)

    claim(storage_path("batch"), Task("second", states))
    with pytest.raises(AirflowFailException, match="The run 'second'"):
        claim(storage_path("batch"), Task("first", states))
    states["second"] = "failed"
    claim(storage_path("batch"), Task("first", states))


@pytest.mark.needs_dags("batch_inference_at_scale")
def test_a_second_run_of_a_batch_pays_nothing_while_the_first_is_running(run_dag, model, storage: Path, logged):
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import update

    storage.mkdir(exist_ok=True)
    (storage / "rows.csv").write_text("text\nreview 1\nreview 2\n")
    conf = {"input": str(storage_path("rows.csv")), "text_column": "text", "id_column": "", "batch": "labels"}

    def set_state(run: Any, state: str) -> None:
        with create_session() as session:
            session.execute(update(DagRun).where(DagRun.id == run.run.id).values(state=state))

    first = run_dag("batch_inference_at_scale", conf | {"limit": 1})
    assert (first.state, len(model.seen())) == ("success", 1)
    set_state(first, "running")
    second = run_dag("batch_inference_at_scale", conf)
    assert (second.state, len(model.seen())) == ("failed", 1)
    assert f"The run {first.run.run_id!r} of batch_inference_at_scale is answering this batch" in logged()
    set_state(first, "failed")
    third = run_dag("batch_inference_at_scale", conf)
    assert third.state == "success"
