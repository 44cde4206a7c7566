"""`make forget` and the DAG `forget_answers`: stored answers are deleted, and no others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from include.ai import forget as forgetting
from include.ai.attempt import run_folder
from include.ai.forget import forget
from include.common.storage import storage_path, write_artifact
from tests.conftest import PROJECT
from tests.storages import on_storage

FILES = {
    "runs/dag_1/run_1/ask.-1.3/aa11-1.json": {},
    "runs/dag_1/run_1/ask.-1.3/effect-bb22-1.json": {},
    "runs/dag_1/run_2/all_tasks/aa11-1.json": {},
    "runs/dag_2/run_1/ask.0.3/cc33-1.json": {},
    "shared/conn/aa/aa11-1.json": {"asked_by": {"dag_id": "dag_1", "run_id": "run_1"}},
    "shared/conn/dd/dd44-1.json": {"asked_by": {"dag_id": "dag_2", "run_id": "run_9"}},
    "shared/conn/ee/ee55-1.json": None,
}


@pytest.fixture
def answers(storage: Any) -> Any:
    for name, content in FILES.items():
        write_artifact(storage_path("stored_answers", *name.split("/")), json.dumps(content) if content else "{")
    return storage / "stored_answers"


def left(answers: Any) -> set[str]:
    return {name for name in FILES if (answers / name).exists()}


def gone(answers: Any) -> set[str]:
    return FILES.keys() - left(answers)


@on_storage("disk", "s3", "memory")
def test_the_answers_of_a_dag_and_what_cannot_be_read_are_deleted(answers):
    assert forget(dag_id="dag_1") == 5
    assert left(answers) == {"runs/dag_2/run_1/ask.0.3/cc33-1.json", "shared/conn/dd/dd44-1.json"}


def test_those_of_a_run_of_any_dag_or_of_one(answers):
    assert forget(dag_id="dag_2", run_id="run_1") == 2
    assert gone(answers) == {"runs/dag_2/run_1/ask.0.3/cc33-1.json", "shared/conn/ee/ee55-1.json"}
    assert forget(run_id="run_1") == 3
    assert left(answers) == {"runs/dag_1/run_2/all_tasks/aa11-1.json", "shared/conn/dd/dd44-1.json"}


def test_those_of_a_key(answers):
    assert forget(key="aa11") == 3
    assert all("aa11" in name for name in gone(answers))


@on_storage("disk", "s3", "memory")
def test_those_that_are_old_and_no_younger_ones(answers):
    assert forget(days=1) == 0
    assert forget(days=0, key="dd44-1.json") == 1
    assert forget(days=0) == 6
    assert left(answers) == set()


@pytest.mark.parametrize("days", [-1, 1e9, float("nan"), float("inf")])
def test_days_that_make_no_sense_are_refused_and_nothing_is_deleted(answers, days):
    with pytest.raises(ValueError, match=r"days=.*: it must be a number from 0 to 36500"):
        forget(days=days)
    assert gone(answers) == set()


HOSTILE = ["*", "a*", "a", "ab", "[ab]", "a?", "../runs", "a/b", "A", "a.json", "", "\x00", "\ud800", "a" * 250]


@pytest.mark.one_stack
@on_storage("disk", "s3", "memory")
def test_of_dags_and_runs_with_hostile_ids_exactly_the_meant_ones_are_deleted(storage):
    pairs = [(dag_id, "a") for dag_id in HOSTILE] + [("a*", run_id) for run_id in HOSTILE if run_id != "a"]
    files = {pair: run_folder(*pair) / "task.-1.3.0" / "aa11-1.json" for pair in pairs}
    for file in files.values():
        write_artifact(file, "{}")
    for dag_id, run_id in pairs:
        assert forget(dag_id=dag_id, run_id=run_id) == 1
        assert not files.pop((dag_id, run_id)).exists()
        assert len(files) == len(storage_path().fs.find(storage_path("stored_answers").path))


@on_storage("disk", "s3", "memory")
@pytest.mark.parametrize("name", ["a*", "a?", "[ab]", "a[!b]", "{a,b}"])
def test_a_file_that_is_named_like_a_pattern_is_deleted_and_no_other(storage, name):
    folder = run_folder("dag", "run") / "task.-1.3.0"
    for each in (f"{name}-1.json", "a-1.json", "ab-1.json", "ac-1.json", "b-1.json"):
        write_artifact(folder / each, "{}")
    assert forget(key=f"{name}-1") == 1
    assert sorted(path.rsplit("/", 1)[-1] for path in folder.fs.find(folder.path)) == [
        "a-1.json",
        "ab-1.json",
        "ac-1.json",
        "b-1.json",
    ]


@on_storage("disk", "memory")
def test_two_at_once_delete_each_answer_once(storage, monkeypatch):
    for number in range(40):
        write_artifact(run_folder("dag", "run") / f"{number}.json", "{}")
    both_have_listed = Barrier(2)
    delete = forgetting.delete_files
    monkeypatch.setattr(forgetting, "delete_files", lambda *args: both_have_listed.wait(60) >= 0 and delete(*args))
    with ThreadPoolExecutor(2) as threads:
        assert sum(threads.map(lambda _: forget(dag_id="dag"), range(2))) == 40


def test_an_empty_folder_that_another_removes_meanwhile_is_passed_over(storage, monkeypatch):
    write_artifact(run_folder("dag", "run") / "1.json", "{}")
    scandir = os.scandir

    def vanishing(path: Any) -> Any:
        if str(path).endswith("/run") and not any(scandir(path)):
            os.rmdir(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert forget(dag_id="dag") == 1
    assert not (storage / "stored_answers/runs/dag/run").exists()


def test_a_disk_keeps_no_empty_folders_and_old_is_by_the_time_of_the_file(answers):
    old = answers / "runs/dag_1/run_1/ask.-1.3/aa11-1.json"
    os.utime(old, (time.time() - 40 * 86400,) * 2)
    assert forget(days=30) == 1
    assert not old.exists()
    assert forget(dag_id="dag_1") == 4
    assert not (answers / "runs/dag_1/run_1").exists()


def test_nothing_is_deleted_unless_it_is_said_what(answers):
    with pytest.raises(ValueError, match="Say which answers"):
        forget()
    assert gone(answers) == set()


@pytest.mark.parametrize("name", ["../..", "..", "dag_1/run_1", "*", "", "dag_?"])
def test_a_name_that_leads_elsewhere_deletes_nothing(answers, storage, name):
    write_artifact(storage_path("reports", "report.md"), "A report.")
    forget(dag_id=name)
    forget(run_id=name)
    forget(key=f"{name}/") if name else None
    assert gone(answers) <= {"shared/conn/ee/ee55-1.json"}
    assert (storage / "reports" / "report.md").exists()


def test_without_stored_answers_there_is_nothing_to_do(storage):
    assert forget(days=0) == 0


@pytest.mark.needs_dags("forget_answers")
def test_the_dag_deletes_old_answers_by_itself_and_others_when_it_is_told(run_dag, answers):
    os.utime(answers / "shared/conn/dd/dd44-1.json", (time.time() - 31 * 86400,) * 2)
    assert run_dag("forget_answers").xcom("delete") == {"result": "1 stored answers deleted"}
    assert run_dag("forget_answers", {"run_id": "run_2"}).xcom("delete") == {"result": "2 stored answers deleted"}


@pytest.mark.needs_dags("forget_answers")
@pytest.mark.parametrize("days", [-1, 1e9, float("inf"), "7", "x"])
def test_the_dag_refuses_days_that_make_no_sense(run_dag, days):
    from airflow.providers.common.compat.sdk import ParamValidationError

    with pytest.raises(ParamValidationError, match="days"):
        run_dag("forget_answers", {"days": days})


@pytest.mark.one_stack
def test_make_forget_says_what_it_deleted_or_what_is_missing(answers, storage, tmp_path):
    def run(*arguments: str) -> Any:
        command = [sys.executable, "-W", "ignore", "-m", "local.forget", "--home", str(tmp_path), *arguments]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)

    done = run("--run", "run_1")
    assert (done.stdout, done.returncode) == ("5 stored answers deleted.\n", 0), done.stderr
    refused = run()
    assert refused.returncode
    assert "Say which answers" in refused.stderr
    assert "DAYS='1e9'" in run("--days", "1e9").stderr
