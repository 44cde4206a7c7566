"""What the demo makes of DAGs that cannot run, against a fake of Airflow's API; test_end_to_end has the real one."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from rich.console import Console

from local import demo
from local.demo import Demo
from local.demo_result import table_of
from tests.conftest import PROJECT
from tests.virtual_time import VirtualTime

pytestmark = pytest.mark.one_stack

GOOD, BROKEN, ABSENT, REFUSED, ENDLESS = "good", "broken", "absent", "refused", "endless"


class FakeAPI:
    """An Airflow with some DAGs, whose runs end at once, but for that of `endless`."""

    def __init__(self, paused: set[str]) -> None:
        self.paused = paused

    def dag_ids(self) -> set[str]:
        return {GOOD, REFUSED, ENDLESS}

    def import_errors(self) -> dict[str, str]:
        return {"patterns/broken.py": "Traceback ...\nImportError: ours", "team/theirs.py": "...\nNameError: theirs"}

    def unpause(self, dag_id: str) -> None:
        self.paused.discard(dag_id)

    def waits_for_assets(self, _: str) -> bool:
        return False

    def trigger(self, dag_id: str) -> str:
        assert dag_id not in self.paused
        if dag_id == REFUSED:
            request = httpx.Request("POST", "http://airflow")
            raise httpx.HTTPStatusError("400", request=request, response=httpx.Response(400, text="no default"))
        return f"run-of-{dag_id}"

    def run(self, dag_id: str, _: str) -> dict[str, Any]:
        return {"state": "running" if dag_id == ENDLESS else "success", "duration": 1.0}

    def task_instances(self, dag_id: str, _: str) -> list[dict[str, Any]]:
        return [{"task_id": "t", "map_index": -1, "state": "success", "start_date": None, "end_date": None}]

    def xcom(self, *where: Any) -> Any:
        return {"result": 7} if "return_value" in where else None


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Demo:
    VirtualTime(monkeypatch, demo)
    stack: Any = SimpleNamespace(api=FakeAPI({GOOD, ENDLESS}))
    return Demo(stack, Console(file=io.StringIO()))


def files(*dag_ids: str) -> dict[str, Path]:
    return {dag_id: PROJECT / "dags" / "patterns" / f"{dag_id}.py" for dag_id in dag_ids}


def test_a_dag_that_cannot_run_is_reported_and_stops_no_other(shown):
    results = shown.run(files(BROKEN, GOOD, ABSENT, REFUSED, ENDLESS))

    assert [(each.dag_id, each.state, each.result) for each in results] == [
        (BROKEN, "import error", "ImportError: ours"),
        (GOOD, "success", "7"),
        (ABSENT, "not parsed", "no such DAG after 90 s"),
        (REFUSED, "not started", "no default"),
        (ENDLESS, "running", "7"),
    ]


def test_files_that_cannot_be_imported_are_named_whose_ever_they_are(shown):
    assert shown.broken_files() == {
        "dags/patterns/broken.py": "ImportError: ours",
        "dags/team/theirs.py": "NameError: theirs",
    }


def test_the_table_takes_any_text(shown):
    out = io.StringIO()
    [result] = shown.run(files(GOOD))
    result.result, result.dag_id = "[/red] [bold]", "dags/[x].py"
    Console(file=out, width=140).print(table_of([result]))
    assert "[/red] [bold]" in out.getvalue()
    assert "dags/[x].py" in out.getvalue()
