"""Names that file systems take for something else. (Links and odd names of documents: tests/test_documents.py.)"""

from __future__ import annotations

import ast
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from include.common.shared_total import SharedTotal
from include.common.storage import storage_path, write_artifact
from include.spend import scores
from include.spend.ledger import Line, Record
from include.spend.reading import read_days, roll_up
from tests.conftest import PROJECT
from tests.test_storage import ODD_FOLDERS

pytestmark = pytest.mark.one_stack

# What fsspec takes a path for a pattern in. `rm` does not on a disk, and a bucket's prefix has no such signs.
OF_PATTERNS = {"glob", "cat", "get", "expand_path"}


@pytest.fixture(params=ODD_FOLDERS)
def odd_storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / request.param / "artifacts"
    monkeypatch.setenv("GENAI_STORAGE", str(folder))
    return folder


def test_a_budget_adds_up_in_a_folder_of_any_name(odd_storage):
    total = SharedTotal(("budgets", "account"))
    for _ in range(40):
        total.add(0.25)

    assert total.read() == 10
    assert odd_storage.exists()


def test_the_ledger_is_read_in_a_folder_of_any_name(odd_storage):
    now = datetime.now(UTC)
    where = {"dag_id": "d", "run_id": "[x]*?", "task_id": "t", "map_index": -1, "try_number": 1}
    line = Line(kind="chat", conn_id="c", model="m", prompt="p", calls=1)
    record = Record(id="1", logical_date=None, started=now, updated=now, state="success", lines=[line], **where)
    write_artifact(storage_path(*record.file), record.model_dump_json())

    assert read_days(now.date(), now.date()).rows["run_id"].to_pylist() == ["[x]*?"]
    roll_up(now.date())
    assert read_days(now.date(), now.date()).rows["run_id"].to_pylist() == ["[x]*?"]
    assert not list(odd_storage.rglob("*.json"))


def test_scores_are_read_in_a_folder_of_any_name(odd_storage, monkeypatch):
    now = datetime.now(UTC)
    context = {"ti": SimpleNamespace(dag_id="d", run_id="[x]*?"), "dag_run": SimpleNamespace(run_after=now)}
    monkeypatch.setattr(scores, "task_context", lambda: context)
    scores.record_score("answers", "grounded", 0.5, cases=1, model="m", fingerprint="f")

    assert [score.run_id for score in scores.read_scores(now.date(), now.date(), {"d"}).scores] == ["[x]*?"]


def test_no_code_hands_a_path_to_what_takes_it_for_a_pattern():
    for file in [*(PROJECT / "include").rglob("*.py"), *(PROJECT / "dags").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in OF_PATTERNS:
                on = ast.unparse(node.func.value)
                assert not on.endswith(("fs", "path", "folder", "root")), f"{file}: {ast.unparse(node)}"
