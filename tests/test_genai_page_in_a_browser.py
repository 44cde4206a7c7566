"""The page GenAI in a real browser: what models and rows from outside hold runs no script and calls nothing out.

Skipped where no Chromium is installed.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import pytest

from docs.screenshots import BROWSERS, Browser
from include.common.storage import artifact_path, write_artifact
from tests.test_genai_page import airflow_app, run  # noqa: F401 (fixtures)

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, BROWSERS)),
    reason="NOT TESTED: the page in a real browser, as no Chromium is installed (apt install chromium)",
)

ATTACK = """# Report

<script>document.title = "run"; fetch("{out}/script")</script>

![picture]({out}/picture.png) <img src="{out}/tag.png" onerror="fetch('{out}/onerror')">

<iframe src="{out}/frame"></iframe> <style>@import url({out}/style.css);</style> <svg onload="fetch('{out}/svg')"></svg>

[script](javascript:fetch("{out}/link")) [data](data:text/html,<script>fetch("{out}/data")</script>)

<form action="{out}/form"><button>Send</button></form> <meta http-equiv="refresh" content="2;url={out}/refresh">
"""
SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40" onload="fetch('{out}/onload')">
  <script>document.title = "run"; fetch("{out}/in-svg")</script>
  <image href="{out}/in-svg.png" width="9" height="9"/><rect width="40" height="40" fill="red"/>
  <foreignObject width="9" height="9"><img xmlns="http://www.w3.org/1999/xhtml" src="{out}/html.png"/></foreignObject>
</svg>"""


class Outside:
    """A server elsewhere, which knows what it was asked for; `/control` is the attack as a page of its own."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        outside = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outside.asked.append(self.path)
                content = ATTACK.format(out=outside.url).encode() if self.path == "/control" else b""
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    outside = Outside()
    with outside.server as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield outside
        server.shutdown()


@pytest.fixture(scope="module")
def url(airflow_app: Any) -> Iterator[str]:  # noqa: F811
    """Airflow's API server, over real HTTP."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(airflow_app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        thread.join(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def browser(url: str) -> Iterator[Browser]:
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="admin", role="admin"))
    with Browser(1000, 800) as browser:
        browser.call("Network.setCookie", name="_token", value=token, url=url)
        yield browser


def is_loaded(browser: Browser, what: str) -> None:
    browser.until(lambda: browser.value(f"document.readyState === 'complete' && {what}"))


def test_what_a_run_left_runs_no_script_and_calls_nothing_out(browser, url, outside, run, storage):  # noqa: F811
    for name, content in (
        ("report.md", ATTACK),
        ("chart.svg", SVG),
        ("rows.jsonl", '{{"text": "<script>fetch(\'{out}/row\')</script>"}}\n'),
        ("<img src=x onerror=1>.txt", "<script>fetch('{out}/text')</script>"),
        ("page.html", ATTACK),
    ):
        write_artifact(artifact_path(run.dag_id, run.run_id, name), content.format(out=outside.url))
    browser.open(f"{url}/genai/runs/{run.dag_id}/{quote(run.run_id)}")
    is_loaded(browser, "document.querySelectorAll('.file').length >= 5")

    assert browser.value("document.title").startswith("GenAI")
    assert browser.value("document.querySelector('.file img').naturalWidth") == 40, "the chart itself is shown"
    assert "onerror" in browser.value("document.querySelector('.markdown').innerText"), "the attack is there, as text"
    dangerous = "script, img, iframe, style, form, meta, svg, a:not([href^=http])"
    assert browser.value(f"document.querySelectorAll('.markdown :is({dangerous})').length") == 0
    assert outside.asked == []


def test_an_svg_opened_by_itself_runs_no_script_and_calls_nothing_out(browser, url, outside, run, storage):  # noqa: F811
    outside.asked.clear()
    write_artifact(artifact_path(run.dag_id, run.run_id, "chart.svg"), SVG.format(out=outside.url))
    browser.open(f"{url}/genai/files/{run.dag_id}/chart.svg?run_id={quote(run.run_id)}")
    is_loaded(browser, "document.documentElement.tagName === 'svg'")
    assert browser.value("document.title") != "run"
    assert outside.asked == []


def test_the_attack_works_where_nothing_holds_it_off(browser, outside):
    outside.asked.clear()
    browser.open(f"{outside.url}/control")
    browser.until(lambda: {"/script", "/tag.png", "/frame", "/style.css", "/svg"} <= set(outside.asked))
