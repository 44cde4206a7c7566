"""What the demo makes of DAGs that cannot run, against a fake of Airflow's API; test_end_to_end has the real one."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from rich.console import Console

from include.ai.usage import USAGE_XCOM_KEY
from local import demo, environment, stack
from local.demo import CONF, Demo, in_turn
from local.demo_result import Result, table_of, totals_of
from local.processes import StackError
from tests.conftest import PROJECT, dag_files
from tests.virtual_time import VirtualTime

pytestmark = pytest.mark.one_stack

GOOD, BROKEN, ABSENT, REFUSED, ENDLESS = "good", "broken", "absent", "refused", "endless"


class FakeAPI:
    """An Airflow with some DAGs, whose runs end at once, but for that of `endless`."""

    def __init__(self, paused: set[str]) -> None:
        self.paused = paused

    def dags(self) -> dict[str, dict[str, Any]]:
        return {dag_id: {"is_paused": dag_id in self.paused} for dag_id in (GOOD, REFUSED, ENDLESS)}

    def import_errors(self) -> dict[str, str]:
        return {"patterns/broken.py": "Traceback ...\nImportError: ours", "team/theirs.py": "...\nNameError: theirs"}

    def unpause(self, dag_id: str) -> None:
        self.paused.discard(dag_id)

    def waits_for_assets(self, _: str) -> bool:
        return False

    def trigger(self, dag_id: str, conf: dict[str, Any] | None) -> str:
        assert dag_id not in self.paused
        assert conf == CONF.get(dag_id)
        if dag_id == REFUSED:
            request = httpx.Request("POST", "http://airflow")
            raise httpx.HTTPStatusError("400", request=request, response=httpx.Response(400, text="no default"))
        return f"run-of-{dag_id}"

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        state = "running" if dag_id == ENDLESS else "success"
        return {"dag_id": dag_id, "dag_run_id": run_id, "run_type": "manual", "state": state, "duration": 1.0}

    def runs(self, **_: Any) -> list[dict[str, Any]]:
        return [self.run(dag_id, f"run-of-{dag_id}") for dag_id in (GOOD, ENDLESS)]

    def task_instances(self, dag_id: str = GOOD, run_id: str = f"run-of-{GOOD}", **_: Any) -> list[dict[str, Any]]:
        times = {"start_date": None, "end_date": None}
        where = {"dag_id": dag_id, "dag_run_id": run_id, "task_id": "t", "map_index": -1}
        return [{**where, **times, "state": "success"}]

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


def test_dags_that_wait_for_the_model_are_started_by_turns_with_others_and_reports_last():
    dags = {
        "patterns": ["routing", "multi_agent", "batch"],
        "mapping": ["expand"],
        "messages": ["dead"],
        "team": ["own"],
    }
    dags |= {"operations": ["spend"]}
    paths = {dag_id: Path("dags", folder, f"{dag_id}.py") for folder in dags for dag_id in dags[folder]}
    assert in_turn(paths) == ["batch", "expand", "multi_agent", "own", "routing", "dead", "spend"]


def test_files_that_cannot_be_imported_are_named_whose_ever_they_are(shown):
    assert shown.broken_files() == {
        "dags/patterns/broken.py": "ImportError: ours",
        "dags/team/theirs.py": "NameError: theirs",
    }


def printed(results: list[Result], width: int = 80) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(table_of(results))
    return out.getvalue().rstrip("\n").split("\n")


def test_the_table_takes_any_text():
    _, line = printed([Result("dags/[x].py", "success", result="[/red] [bold]")])
    assert "[/red] [bold]" in line
    assert "dags/[x].py" in line


def test_the_table_fits_a_narrow_terminal_with_a_line_for_each_dag_that_succeeded():
    dag_ids = [path.stem for path in dag_files()]
    lines = printed([Result(dag_id, "success", 123.4, result="What came out, " * 20) for dag_id in dag_ids])
    assert [line.split()[0] for line in lines[1:]] == dag_ids
    assert max(map(len, lines)) <= 80


def test_the_table_shows_what_a_run_cost_or_its_tokens_where_no_price_is_known():
    paid, local, free = Result("paid", "success"), Result("local", "success"), Result("free", "success")
    for result, costs in ((paid, (0.5, 0.0002)), (local, (0.25, None, 0.25))):
        for cost in costs:
            result.add_usage({"input_tokens": 1000, "output_tokens": 10, "cost_usd": cost})
    lines = printed([paid, local, free])
    assert [line.split()[3:] for line in lines[1:]] == [["$0.5002"], ["3,030", "tokens"], []]
    assert totals_of([paid, local]).endswith("5,050 tokens. They cost $0.5002, plus calls of unknown price.")
    assert totals_of([local, free]).endswith("3,030 tokens.")


OWN_MODELS = {"AIRFLOW_CONN_PYDANTICAI_DEFAULT": "{}", "AIRFLOW_CONN_EMBEDDINGS_DEFAULT": "{}"}


def test_where_the_embedded_models_cannot_be_installed_models_of_ones_own_are_asked_for(monkeypatch):
    assert stack.has_model_server({})
    monkeypatch.setattr(stack, "find_spec", lambda package: None if package == "wordllama" else object())
    with pytest.raises(StackError, match=r"wordllama could not be installed.*OPENAI_API_KEY, or AIRFLOW_CONN_PYD.*and"):
        stack.has_model_server({})
    with pytest.raises(StackError, match="OPENAI_API_KEY, or AIRFLOW_CONN_EMBEDDINGS_DEFAULT"):
        stack.has_model_server({"AIRFLOW_CONN_PYDANTICAI_DEFAULT": "{}"})
    for settings in ({"OPENAI_API_KEY": "x"}, OWN_MODELS):
        assert not stack.has_model_server(settings)


# A FAKE of Python, venv, pip and uv, on a machine that has no wheel of some packages.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *"-m venv "*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp "$0" .venv/bin/uv; exit 0;;
esac
for each in "$@"; do
  test -f "$each" && case "$each" in *.txt) set -- "$@" $(cat "$each");; esac
done
case "$*" in
  *MISSING*) exit 1;;
  *" install "*) echo "$*" >> installed;;
esac
"""


@pytest.mark.parametrize(
    ("missing", "code", "said"),
    [
        ("wordllama", 0, "wordllama==1 could not be installed on this machine"),
        ("lancedb", 2, "Where it says that a package has no wheel, this machine is not supported"),
    ],
)
def test_make_says_which_package_a_machine_lacks_and_installs_the_rest_where_it_can(tmp_path, missing, code, said):
    shutil.copy(PROJECT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").write_text("airflow-ai-sdk==1\n")
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "airflow-ai-sdk.lock").write_text("lancedb==1\nwordllama==1\nxllamacpp==1\n")
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON.replace("MISSING", missing))
    python.chmod(0o755)
    command = ["make", ".venv/installed-from-lock", f"PYTHON={python}"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == code, ended.stderr
    assert said in ended.stdout
    installed = (tmp_path / "installed").read_text()
    assert ("xllamacpp==1" in installed) == (code == 0)
    assert f"{missing}==1" not in installed


@pytest.mark.parametrize("port", ["99999", "0", "-1", "http"])
@pytest.mark.parametrize("module", ["demo", "stack"])
def test_a_port_that_is_none_is_answered_with_what_to_do(module, port, tmp_path):
    action = ["start"] if module == "stack" else []
    command = [sys.executable, "-m", f"local.{module}", *action, "--port", port, "--home", str(tmp_path)]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.endswith(f"PORT={port!r}: it must be a whole number from 1 to 65535\n")


def test_the_table_says_in_full_why_a_dag_did_not_run():
    reason = " ".join(f"reason{n}" for n in range(40))
    lines = printed([Result("dags/patterns/a_name_that_is_rather_long.py", "import error", result=reason)])
    assert max(map(len, lines)) <= 80
    squeezed = "".join(line[-40:] for line in lines).replace(" ", "")
    assert "reason0" in squeezed
    assert "reason39" in squeezed


@pytest.mark.parametrize("dag_id", sorted(CONF))
def test_what_the_demo_asks_of_a_dag_is_among_its_params(dag_id, load_dag):
    params = load_dag(dag_id).params
    assert CONF[dag_id].keys() <= params.keys()
    params.update(CONF[dag_id])
    params.validate()


def test_the_demo_starts_without_importing_airflow_whose_libraries_would_be_the_first_to_speak():
    script = "import sys, local.demo; print(local.demo.USAGE_XCOM_KEY, 'airflow' in sys.modules)"
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert (ended.stdout, ended.stderr) == (f"{USAGE_XCOM_KEY} False\n", "")


# Money


def start_of_main(monkeypatch: pytest.MonkeyPatch, home: Path, found: bool, *arguments: str) -> str:
    """What `main` ends with on a stack that may run already, and otherwise cannot start."""

    def start(_: object) -> None:
        raise StackError(f"key: {os.environ['OPENAI_API_KEY']!r}")

    stack = SimpleNamespace(
        home=home, attach=lambda: found, start=start, stop=lambda: None, api=SimpleNamespace(url="a")
    )
    stack.api.log_in = lambda: start(None)
    monkeypatch.setattr(demo, "Stack", lambda *_: stack)
    monkeypatch.setattr(environment, "PROJECT", home)  # without the developer's own .env
    monkeypatch.setattr(sys, "argv", ["demo", *arguments])
    monkeypatch.setenv("OPENAI_API_KEY", "sk-something")
    with pytest.raises(SystemExit) as end:
        demo.main()
    return str(end.value)


def test_a_key_alone_makes_no_demo_a_paid_one(monkeypatch, tmp_path, capsys):
    assert "key: ''" in start_of_main(monkeypatch, tmp_path, False)
    assert "make demo PAID=1 uses it" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("found", [False, True])
def test_a_demo_that_may_be_paid_says_what_it_may_cost(monkeypatch, tmp_path, capsys, found):
    assert "key: 'sk-something'" in start_of_main(monkeypatch, tmp_path, found, "--paid", "1")
    assert "costs between $" in " ".join(capsys.readouterr().out.split())


def test_a_stack_that_runs_with_a_key_is_used_only_by_a_demo_that_may_be_paid(monkeypatch, tmp_path):
    assert "make demo PAID=1, or make stop first" in start_of_main(monkeypatch, tmp_path, True)
