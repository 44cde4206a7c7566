"""The page "GenAI" in Airflow's UI: who sees what, and that nothing in it runs, loads or leads elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from include.common.storage import artifact_path, write_artifact
from include.page.previews import MOST_BYTES, preview
from include.spend.ledger import Ledger
from include.spend.scores import record_score
from tests.conftest import PROJECT
from tests.storages import on_storage
from tests.test_ledger import CALL, in_task
from tests.test_prompt_chaining import script
from tests.test_scores import in_run

HOSTILE = (
    "<script>alert(1)</script>\n\n[a](javascript:alert(1)) ![p](http://elsewhere.example/p.png)\n\n"
    "<img src=x onerror=alert(1)> <a href='javascript:x'>y</a> [d](data:text/html,x) [v](vbscript:x)"
)


class Client:
    """A browser of a user with this role, or of nobody."""

    def __init__(self, app: Any, role: str | None) -> None:
        from airflow.api_fastapi.app import get_auth_manager
        from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
        from starlette.testclient import TestClient

        self._client = TestClient(app, raise_server_exceptions=False)
        if role:
            token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=role, role=role))
            self._client.cookies.set("_token", token)

    def get(self, path: str, **headers: str) -> Any:
        return self._client.get(f"/genai/{path}", headers=headers)


@pytest.fixture(scope="module")
def airflow_app(airflow_db: None) -> Any:
    from airflow.api_fastapi.app import create_app

    return create_app(apps="core")


@pytest.fixture
def browser(airflow_app: Any, storage: Any) -> Client:
    return Client(airflow_app, "admin")


@pytest.fixture
def run(run_dag: Any, llm: Any, storage: Any) -> Iterator[Any]:
    script(llm)
    return run_dag("prompt_chaining").run


def of_run(run: Any) -> str:
    return f"runs/{run.dag_id}/{quote(run.run_id)}"


def test_nothing_is_shown_without_a_login(airflow_app, run):
    for path in ("", f"dags/{run.dag_id}", of_run(run), f"files/{run.dag_id}/reply.json?run_id={quote(run.run_id)}"):
        assert Client(airflow_app, None).get(path).status_code == 401


def test_nothing_of_a_dag_is_shown_to_who_may_not_read_it(airflow_app, run, monkeypatch):
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

    monkeypatch.setattr(SimpleAuthManager, "is_authorized_dag", lambda *_, **__: False)
    browser = Client(airflow_app, "viewer")
    for path in (f"dags/{run.dag_id}", of_run(run), f"files/{run.dag_id}/reply.json?run_id={quote(run.run_id)}"):
        assert browser.get(path).status_code == 403
    overview = browser.get("")
    assert overview.status_code == 200
    assert run.dag_id not in overview.text
    assert "<b>0</b>calls" in overview.text


def test_a_viewer_sees_what_was_spent_and_what_came_out(airflow_app, run, llm):
    browser = Client(airflow_app, "viewer")
    overview = browser.get("").text
    assert "<b>2</b>calls" in overview
    assert 'href="/genai/dags/prompt_chaining"' in overview
    assert 'gpt-6-luna</a> <span class="quiet">pydanticai_default</span>' in overview
    dag = browser.get("dags/prompt_chaining").text
    assert f'href="/genai/{of_run(run)}"'.replace("%3A", ":") in dag.replace("%3A", ":")
    shown = browser.get(of_run(run)).text
    assert "technical / high urgency" in shown
    assert "reply.json" in shown
    assert "analyze_ticket" in shown


def test_every_page_forbids_the_browser_what_it_does_not_need(browser, run):
    for path in ("", "dags/prompt_chaining", of_run(run)):
        headers = browser.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_markdown_from_a_model_runs_loads_and_leads_nowhere(browser, run, storage):
    write_artifact(artifact_path(run.dag_id, run.run_id, "report.md"), HOSTILE)
    shown = browser.get(of_run(run)).text
    assert "alert(1)" in shown
    for forbidden in (
        "<script>alert",
        "<img src=x",
        "<a href='javascript",
        'href="javascript',
        'href="data:',
        'href="vbs',
    ):
        assert forbidden not in shown
    assert "elsewhere.example" not in "".join(part for part in shown.split("<") if part.startswith("img"))


def test_an_svg_is_a_picture_in_a_sandbox_and_all_else_a_download(browser, run, storage):
    write_artifact(artifact_path(run.dag_id, run.run_id, "chart.svg"), "<svg><script>alert(1)</script></svg>")
    write_artifact(artifact_path(run.dag_id, run.run_id, "page.html"), "<script>alert(1)</script>")

    def get(name: str, more: str = "") -> Any:
        return browser.get(f"files/{run.dag_id}/{name}?run_id={quote(run.run_id)}{more}")

    svg = get("chart.svg")
    assert svg.headers["content-type"] == "image/svg+xml"
    assert svg.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    html = get("page.html")
    assert html.headers["content-type"] == "application/octet-stream"
    assert html.headers["content-disposition"] == 'attachment; filename="page.html"'
    assert "attachment" in get("chart.svg", "&download=true").headers["content-disposition"]


@pytest.mark.one_stack
@pytest.mark.parametrize(
    "name",
    ["../reply.json", "..%2F..%2Frun%2Freply.json", "%2e%2e/%2e%2e/x", "/etc/passwd", "file:///etc/passwd", "no.txt"],
)
def test_only_files_of_the_run_are_sent(browser, run, storage, name):
    write_artifact(artifact_path(run.dag_id, "another", "reply.json"), "of another run")
    assert browser.get(f"files/{run.dag_id}/{name}?run_id={quote(run.run_id)}").status_code == 404


@pytest.mark.one_stack
@pytest.mark.parametrize("dag_id", ["..", "%2e%2e", "ledger"])
def test_a_run_that_is_not_there_is_not_found(browser, run, dag_id):
    assert browser.get(f"runs/{dag_id}/{quote(run.run_id)}").status_code in (404, 403)
    assert browser.get(f"files/{dag_id}/x.json?run_id={quote(run.run_id)}").status_code in (404, 403)


def test_what_is_large_is_cut_and_what_is_broken_is_said(browser, run, storage):
    folder = artifact_path(run.dag_id, run.run_id, "")
    write_artifact(folder / "long.md", "word " * MOST_BYTES)
    write_artifact(folder / "many.jsonl", '{"a": 1, "b": {"c": "<b>"}}\n' * 1000)
    write_artifact(folder / "broken.parquet", b"PAR1 nonsense")
    write_artifact(folder / "broken.json", "{")
    write_artifact(folder / "half.csv", 'a,b\n1,"<script>"\n\n2')
    shown = browser.get(of_run(run))
    assert shown.status_code == 200
    assert len(shown.content) < 3 * MOST_BYTES
    for said in ("The first 100 kB", "The first 20 rows", "b.c", "&lt;script&gt;", "It cannot be shown"):
        assert said in shown.text


@pytest.mark.one_stack
def test_rows_without_any_and_with_a_blank_line_are_shown(storage):
    for content, rows in (("", []), ('{"a": "first"}\n\n{"a": "second"}\n', [["first"], ["second"]])):
        file = artifact_path("a_dag", "a run", "rows.jsonl")
        write_artifact(file, content)
        shown = preview("rows.jsonl", file)
        assert (shown.rows, shown.note) == (rows, "")


def test_long_and_wide_tables_say_how_much_of_them_is_shown(browser, run, storage):
    import pyarrow as pa
    from pyarrow import parquet

    folder, buffer = artifact_path(run.dag_id, run.run_id, ""), pa.BufferOutputStream()
    parquet.write_table(pa.table({f"column {number}": range(1234) for number in range(60)}), buffer)
    write_artifact(folder / "a.parquet", buffer.getvalue().to_pybytes())
    write_artifact(folder / "b.csv", "".join(f"{number},x\n" for number in range(21)))
    write_artifact(folder / "c.svg", b"<svg/>" + b" " * 5_000_000)
    shown = browser.get(of_run(run)).text
    assert "The first 20 of 1,234 rows." in shown
    assert "The first 40 of 60 columns." in shown
    assert "column 39" in shown
    assert "column 40" not in shown
    assert "It is too large to be shown here." in shown
    assert "The first 20 rows." not in shown, "a head and 20 rows are all of it"
    for number in range(25):
        write_artifact(folder / f"{number}.txt", "text")
    assert browser.get(of_run(run)).text.count("Not shown: too many files.") == 4 + 25 - 20


@pytest.mark.one_stack
@on_storage("disk", "s3")
def test_a_large_file_is_sent_in_the_range_that_was_asked_for(airflow_app, run, storage):
    browser = Client(airflow_app, "admin")
    write_artifact(artifact_path(run.dag_id, run.run_id, "large.bin"), bytes(range(256)) * 10_000)
    path = f"files/{run.dag_id}/large.bin?run_id={quote(run.run_id)}"
    whole = browser.get(path)
    assert (whole.status_code, len(whole.content), whole.headers["accept-ranges"]) == (200, 2_560_000, "bytes")
    for asked, first, last in (
        ("bytes=0-9", 0, 9),
        ("bytes=1048570-1048585", 1_048_570, 1_048_585),
        ("bytes=1000-2559999", 1_000, 2_559_999),
        ("bytes=2559990-", 2_559_990, 2_559_999),
        ("bytes=-10", 2_559_990, 2_559_999),
        ("bytes=2559999-9999999999", 2_559_999, 2_559_999),
    ):
        part = browser.get(path, Range=asked)
        assert (part.status_code, part.content) == (206, whole.content[first : last + 1])
        assert part.headers["content-range"] == f"bytes {first}-{last}/2560000"
        assert part.headers["content-length"] == str(last + 1 - first), "compressed, it is not that range of the file"
    for odd in ("bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6"):
        assert browser.get(path, Range=odd).status_code == 200
    for outside in ("bytes=2560000-", "bytes=9-3"):
        assert browser.get(path, Range=outside).status_code == 416
    write_artifact(artifact_path(run.dag_id, run.run_id, "large.bin"), b"")
    assert browser.get(path).content == b""


@pytest.mark.one_stack
@on_storage("disk", "s3")
def test_a_download_is_continued_only_while_the_file_is_the_same(airflow_app, run, storage):
    browser = Client(airflow_app, "admin")
    write_artifact(artifact_path(run.dag_id, run.run_id, "large.bin"), b"first" * 1_000)
    path = f"files/{run.dag_id}/large.bin?run_id={quote(run.run_id)}"
    begun = {"Range": "bytes=10-", "If-Range": browser.get(path).headers["etag"]}
    assert browser.get(path, **begun).content == b"first" * 998
    write_artifact(artifact_path(run.dag_id, run.run_id, "large.bin"), b"other" * 1_000)
    changed = browser.get(path, **begun)
    assert (changed.status_code, changed.content) == (200, b"other" * 1_000)


def test_a_task_instance_shows_its_own_calls_only(browser, run):
    own = browser.get(f"{of_run(run)}?task=analyze_ticket&map_index=-1").text
    assert "analyze_ticket" in own
    assert "write_reply" not in own
    assert "No model calls" in browser.get(f"{of_run(run)}?task=deliver&map_index=-1").text
    assert "No model calls" in browser.get(f"{of_run(run)}?task=analyze_ticket&map_index=3").text
    assert "analyze_ticket" in browser.get(f"{of_run(run)}?task=analyze_ticket&map_index={{MAP_INDEX}}").text


def test_a_run_that_was_cleared_days_later_still_shows_the_calls_of_its_earlier_tries(browser, run, storage):
    from airflow.models.taskinstance import clear_task_instances
    from airflow.utils.session import create_session

    days, attempts = timedelta(days=3), storage / "ledger" / "attempts"
    (today,) = attempts.iterdir()
    today.rename(attempts / str(date.fromisoformat(today.name) - days))
    with create_session() as session:
        tasks = [session.merge(task) for task in run.get_task_instances()]
        for each in (session.merge(run), *tasks):
            each.start_date, each.end_date = each.start_date - days, each.end_date - days
        session.flush()
        clear_task_instances(tasks, session)
    shown = browser.get(of_run(run)).text
    assert "analyze_ticket" in shown
    assert "write_reply" in shown
    assert (
        "analyze_ticket" in browser.get(f"{of_run(run)}?task=analyze_ticket&map_index=-1").text.partition("<table>")[2]
    )


def test_scores_are_plotted_by_model_and_prompt_for_who_may_read_the_dag(airflow_app, browser, run, monkeypatch):
    for day, model in ((25, "gpt-6-luna"), (26, "<b>another</b>")):
        in_run(monkeypatch, f"run {day}", run.dag_id, day)
        record_score("answers <i>", "grounded", 0.9, cases=60, model=model, fingerprint="0f0f", low=0.8, high=0.95)
    days = "first=2026-11-20&last=2026-11-30"
    shown = browser.get(f"?{days}").text
    assert "answers &lt;i&gt;: grounded" in shown
    assert "&lt;b&gt;another&lt;/b&gt;" in shown
    assert "0.800 to 0.950" in shown
    assert shown.count("<circle") == 2 + 2
    assert 'href="/genai/runs/prompt_chaining/run%2026"' in shown
    assert "grounded" not in browser.get(f"?{days}&dag=multi_agent").text
    assert "grounded" not in browser.get("?first=2026-11-01&last=2026-11-02").text

    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

    monkeypatch.setattr(SimpleAuthManager, "is_authorized_dag", lambda *_, **__: False)
    assert "grounded" not in Client(airflow_app, "viewer").get(f"?{days}").text


def test_a_model_and_a_prompt_lead_to_their_runs(browser, run):
    overview = browser.get("").text
    assert "model=gpt-6-luna" in overview
    assert f"/genai/runs/{run.dag_id}/" in overview
    assert "<b>2</b>calls" in browser.get("?model=gpt-6-luna").text
    assert "<b>0</b>calls" in browser.get("?model=another").text


def test_names_and_models_of_others_are_text(browser, storage, monkeypatch):
    process = Ledger()
    in_task(monkeypatch, dag_id="prompt_chaining", task_id="<b>task</b>")
    process.record(CALL._replace(model="<script>alert(1)</script>"))
    process.flush()
    shown = browser.get("").text
    assert "&lt;script&gt;alert(1)" in shown
    assert "<script>alert" not in shown


def test_stored_answers_are_shown_with_what_they_saved(browser, run, monkeypatch):
    process = Ledger()
    in_task(monkeypatch, dag_id="prompt_chaining")
    process.record(CALL._replace(calls=0, cost_usd=0.0, reused=3, saved_usd=0.25))
    process.flush()
    shown = browser.get("").text
    assert "<b>$0.25</b>saved by 3 stored answers" in shown
    assert "+ 3 reused" in shown


def test_broken_records_are_counted_on_the_page(browser, storage, monkeypatch):
    folder = storage / "ledger" / "attempts" / datetime.now(UTC).date().isoformat()
    folder.mkdir(parents=True)
    (folder / "x.json").write_text("{")
    assert "1 files of the ledger cannot be read" in browser.get("").text


def test_a_storage_that_the_api_server_cannot_read_is_said(browser, monkeypatch, run):
    def fail(*_: Any) -> Any:
        raise PermissionError("Access Denied")

    monkeypatch.setattr("include.page.app.read_days", fail)
    answer = browser.get("")
    assert answer.status_code == 503
    assert "cannot read GENAI_STORAGE: Access Denied" in answer.text


@pytest.mark.parametrize("query", ["first=2026-02-01&last=2026-01-01", "first=2020-01-01&last=2026-01-01", "first=x"])
def test_a_range_of_days_that_makes_no_sense_is_refused(browser, query):
    assert browser.get(f"?{query}").status_code == 422


def test_filters_stand_in_the_url(browser, run):
    assert "<b>0</b>calls" in browser.get("?dag=multi_agent").text
    assert "<b>2</b>calls" in browser.get("?dag=prompt_chaining").text
    assert "<b>0</b>calls" in browser.get("?first=2026-01-01&last=2026-01-02").text


def test_the_plugin_costs_a_process_of_airflow_almost_nothing():
    """It imports nothing that Airflow has not imported already."""
    code = """
import sys
from airflow.plugins_manager import AirflowPlugin
before = set(sys.modules)
import runpy
runpy.run_path("plugins/genai_page.py")
print(sorted(name for name in set(sys.modules) - before if not name.startswith("runpy")))
"""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=PROJECT,
        env=os.environ.copy(),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert json.loads(found.stdout.splitlines()[-1].replace("'", '"')) in ([], ["pkgutil"], ["importlib.machinery"])


def test_views_lead_to_the_page_below_the_deployments_own_path():
    from plugins.genai_page import GenAIPage

    assert len({view["url_route"] for view in GenAIPage.external_views}) == len(GenAIPage.external_views)
    assert all(view["href"].startswith("genai/") for view in GenAIPage.external_views)


def test_budgets_are_shown_with_what_is_left_to_who_may_see_the_connection(
    airflow_app, run_dag, llm, storage, monkeypatch
):
    connection = json.loads(os.environ["AIRFLOW_CONN_PYDANTICAI_DEFAULT"])
    connection["extra"]["budgets"] = {"day_usd": 5e-5, "month_usd": 300, "warn_at": 0.5}
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", json.dumps(connection))
    script(llm)
    run_dag("prompt_chaining")
    shown = Client(airflow_app, "admin").get("").text
    assert "<h2>Budgets</h2>" in shown
    assert "$300.00" in shown
    assert 'class="near"' in shown
    assert connection["password"] not in shown
    assert "<h2>Budgets</h2>" not in Client(airflow_app, "viewer").get("").text
