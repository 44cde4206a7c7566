"""Take the pictures of the docs again, from a running stack: each DAG's graph with its last run, and the UI.

    make start && make demo
    .venv/bin/python docs/screenshots.py

It drives a headless Chromium, which must be installed (`apt install chromium`). No test takes the pictures.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from websockets.sync.client import ClientConnection, connect

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from local.airflow_api import AirflowAPI  # noqa: E402
from local.dags import template_dags  # noqa: E402

IMAGES = PROJECT / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT_S = 60
MARGIN = 16

# What lies over the graph, and its dots.
HIDE = """document.head.insertAdjacentHTML('beforeend', `<style>.react-flow__panel, .react-flow__background,
  .react-flow__minimap, [aria-label^="Download"] {display: none !important}</style>`)"""

# Where the nodes of the graph are, together.
GRAPH = """(() => {
  const boxes = [...document.querySelectorAll('.react-flow__node')].map(node => node.getBoundingClientRect());
  if (!boxes.length) return null;
  const left = Math.min(...boxes.map(b => b.left)), top = Math.min(...boxes.map(b => b.top));
  return {x: left, y: top, width: Math.max(...boxes.map(b => b.right)) - left,
          height: Math.max(...boxes.map(b => b.bottom)) - top};
})()"""
WHOLE = "document.querySelector({0!r}) && {{x: 0, y: 0, width: innerWidth, height: innerHeight}}"


class Browser:
    """A headless Chromium with one page, driven by its debugging protocol."""

    def __init__(self, width: int, height: int) -> None:
        program = next(filter(None, map(shutil.which, BROWSERS)), None)
        if program is None:
            sys.exit(f"No browser is found ({', '.join(BROWSERS)}). On Debian: apt install chromium")
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        flags = ["--headless", "--no-sandbox", "--hide-scrollbars", "--remote-debugging-port=0"]
        self._process = subprocess.Popen(
            [program, *flags, f"--window-size={width},{height}", f"--user-data-dir={self._folder.name}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port_file = Path(self._folder.name) / "DevToolsActivePort"
        port = self.until(lambda: port_file.exists() and port_file.read_text().split("\n")[0])
        pages = self.until(lambda: httpx.get(f"http://127.0.0.1:{port}/json").json())
        page = next(page for page in pages if page["type"] == "page")
        self._socket: ClientConnection = connect(page["webSocketDebuggerUrl"], max_size=None)
        self._calls = 0

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def call(self, method: str, **params: Any) -> Any:
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": params}))
        while (answer := json.loads(self._socket.recv(timeout=TIMEOUT_S))).get("id") != self._calls:
            pass
        return answer["result"]

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def picture(self, where: str, path: Path, margin: int = 0) -> None:
        """Wait until the expression `where` gives a rectangle, then write what is in it as a small PNG."""
        self.until(lambda: self.value(where))
        time.sleep(4)  # until nothing moves any more
        self.value(HIDE)
        box = self.value(where)
        clip = {"x": box["x"] - margin, "y": box["y"] - margin, "scale": 1}
        clip |= {"width": box["width"] + 2 * margin, "height": box["height"] + 2 * margin}
        data = self.call("Page.captureScreenshot", format="png", clip=clip)["data"]
        image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").quantize(64)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, optimize=True)
        print(f"{path.relative_to(PROJECT)}: {image.width} x {image.height}, {path.stat().st_size // 1024} kB")

    def until(self, condition: Any) -> Any:
        """What the condition returns, as soon as it is true."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                if found := condition():
                    return found
            except httpx.HTTPError:
                pass
            if time.monotonic() > deadline:
                raise TimeoutError("The page did not show what the picture is of.")
            time.sleep(0.2)


def last_run(api: AirflowAPI, dag_id: str) -> str:
    runs = api.runs(dag_id)
    if not runs:
        sys.exit(f"{dag_id} has not run: `make demo` runs every DAG.")
    return str(runs[-1]["dag_run_id"])


def take_graphs(url: str, api: AirflowAPI, dag_ids: list[str]) -> None:
    with Browser(1500, 900) as browser:
        browser.open(f"{url}/auth/token/login")
        time.sleep(3)
        for dag_id in dag_ids:
            browser.value(f"localStorage.setItem('dag_view-{dag_id}', '\"graph\"')")
            browser.open(f"{url}/dags/{dag_id}/runs/{last_run(api, dag_id)}")
            browser.picture(GRAPH, IMAGES / "graphs" / f"{dag_id}.png", MARGIN)


def take_pages(url: str, api: AirflowAPI) -> None:
    with Browser(1280, 950) as browser:
        browser.open(f"{url}/auth/token/login")
        time.sleep(3)
        browser.open(f"{url}/dags?tags=pattern")
        table = """document.querySelector('[aria-label="Show table view"]')"""
        browser.until(lambda: browser.value(f"!!{table} && ({table}.click(), true)"))
        browser.picture(WHOLE.format("[data-testid='table-list']"), IMAGES / "dags.png")
        run_id = api.trigger(
            "human_review", {"tickets": ["Three of our vans are offline, although they are on the road."]}
        )
        requests = browser.until(lambda: api.open_requests("human_review", run_id))
        task_id = requests[0]["task_instance"]["task_id"]
        browser.open(f"{url}/dags/human_review/runs/{run_id}/tasks/{task_id}/mapped/0/required_actions")
        browser.picture(WHOLE.format("textarea"), IMAGES / "human-review.png")


def take_spend(url: str, api: AirflowAPI) -> None:
    frame = """(() => {{
      const frame = document.querySelector('iframe');
      return frame && frame.contentDocument && frame.contentDocument.querySelector('{}')
        && {{x: 0, y: 0, width: innerWidth, height: innerHeight}};
    }})()"""
    with Browser(1280, 760) as browser:
        browser.open(f"{url}/auth/token/login")
        time.sleep(3)
        browser.open(f"{url}/plugin/genai-nav")
        browser.picture(frame.format(".tiles"), IMAGES / "spend.png")
        run = f"{url}/dags/rag_evaluation/runs/{last_run(api, 'rag_evaluation')}"
        browser.open(f"{run}/plugin/genai-dag_run")
        browser.picture(frame.format(".file"), IMAGES / "result.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="of the running stack (default: %(default)s)")
    parser.add_argument("--only", action="append", help="the graph of this DAG only; may be repeated")
    arguments = parser.parse_args()
    api = AirflowAPI(arguments.url)
    api.log_in()
    dag_ids = list(template_dags())
    take_graphs(arguments.url, api, arguments.only or dag_ids)
    if not arguments.only:
        take_pages(arguments.url, api)
        take_spend(arguments.url, api)


if __name__ == "__main__":
    main()
