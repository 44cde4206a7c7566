"""Large values between tasks, kept on object storage: a folder, or a bucket behind a real S3 API (moto's server)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT, DagRunResult
from tests.storages import s3_connection
from tests.test_local_environment import variables

MB = 2**20
DOC = PROJECT / "docs" / "deploying-to-astronomer.md"


@pytest.fixture
def keep_large_xcoms(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make a run in this process keep XComs as these settings say."""
    from airflow.providers.common.io.xcom import backend
    from airflow.sdk.execution_time import task_runner

    cached = [backend._get_base_path, backend._get_compression, backend._get_threshold]

    def apply(settings: dict[str, str]) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        assert settings["AIRFLOW__CORE__XCOM_BACKEND"].endswith(".XComObjectStorageBackend")
        monkeypatch.setattr(task_runner, "XCom", backend.XComObjectStorageBackend)
        for each in cached:
            each.cache_clear()

    yield apply
    for each in cached:
        each.cache_clear()


@pytest.fixture
def run_hand_over(run_any_dag: Any) -> Any:
    """Run a DAG in which one task hands a text of this size to the next, which returns its length and end."""

    def run(size: int) -> DagRunResult:
        from airflow.sdk import dag, task

        @dag(schedule=None)
        def hand_over():
            @task(show_return_value_in_logs=False)
            def give() -> str:
                return "x" * (size - 4) + "end."

            @task
            def take(text: str) -> dict:
                return {"length": len(text), "end": text[-4:]}

            take(give())

        return run_any_dag(hand_over())

    return run


def settings_of_the_docs() -> dict[str, str]:
    (block,) = re.findall(r"```ini\n(AIRFLOW__CORE__XCOM_BACKEND.*?)```", DOC.read_text(), re.DOTALL)
    return dict(line.split("=", 1) for line in block.splitlines())


def settings_of_the_local_stack(tmp_path: Path) -> dict[str, str]:
    return {name: value for name, value in variables(tmp_path).items() if "XCOM" in name}


def test_with_the_settings_of_the_docs_fifty_megabytes_go_over_s3(s3, keep_large_xcoms, run_hand_over, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_connection(s3))
    keep_large_xcoms(settings_of_the_docs())
    run = run_hand_over(50 * MB)

    assert run.state == "success"
    assert run.xcom("take") == {"length": 50 * MB, "end": "end."}
    assert run.xcom("give").startswith("s3://aws_default@your-bucket/xcom/hand_over/")
    (stored,) = s3.list_objects_v2(Bucket="your-bucket", Prefix="xcom/hand_over/")["Contents"]
    assert 0 < stored["Size"] < MB, "compressed"


def test_on_the_local_stack_they_go_over_a_folder(tmp_path, keep_large_xcoms, run_hand_over):
    keep_large_xcoms(settings_of_the_local_stack(tmp_path))
    run = run_hand_over(50 * MB)

    assert run.xcom("take") == {"length": 50 * MB, "end": "end."}
    (stored,) = (path for path in (tmp_path / "home" / "xcom").rglob("*") if path.is_file())
    assert stored.stat().st_size > 50 * MB
    assert run.xcom("give").endswith(stored.name)


def test_a_small_value_stays_in_the_database(tmp_path, keep_large_xcoms, run_hand_over):
    keep_large_xcoms(settings_of_the_local_stack(tmp_path))
    run = run_hand_over(1000)

    assert run.xcom("take")["length"] == 1000
    assert run.xcom("give").endswith("end.")
    assert not (tmp_path / "home" / "xcom").exists()


def test_what_a_call_used_goes_to_a_bucket_from_within_an_event_loop(s3, keep_large_xcoms, model, run_dag, monkeypatch):
    from airflow.sdk.io import store

    monkeypatch.setattr(store, "_STORE_CACHE", {})  # the bucket is not open yet
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", s3_connection(s3))
    keep_large_xcoms(settings_of_the_docs() | {"AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_THRESHOLD": "0"})
    run = run_dag("on_demand_inference", {"message": "Where is my van?"})

    assert run.state == "success"
    assert run.xcom("answer", "llm_usage").startswith("s3://aws_default@your-bucket/xcom/on_demand_inference/")
