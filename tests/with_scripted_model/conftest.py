"""Fixtures to run a DAG as a test: no scheduler, no network, no key, and a scripted model in place of the real one.

def test_a_bill_goes_to_billing(model, run_dag):
    model.answers = [{"category": "billing"}]
    run = run_dag("dags/my_dag.py", {"ticket": "You charged us twice."})
    assert run.state == "success", run.log
    assert run.returned["sort_ticket"]["category"] == "billing"
"""

from __future__ import annotations

import base64
import json
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
NAME = "scripted-model"
DIMENSIONS = 256
TIMEOUT_S = 300


@dataclass
class ScriptedModel:
    """A FAKE of a language model and of an embedding model, behind OpenAI's API.

    :param answers: the next answers, in order: a text, or a dict where the task asks for an `output_type`. When none
        is left, it answers with the simplest value that fits the request.
    :param requests: the bodies of all requests it received.
    """

    answers: list[str | dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def reply(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        if "input" in request:
            texts = [request["input"]] if isinstance(request["input"], str) else request["input"]
            data = [{"object": "embedding", "index": n, "embedding": vector(text)} for n, text in enumerate(texts)]
            if request.get("encoding_format") == "base64":
                for each in data:
                    each["embedding"] = base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *each["embedding"])).decode()
            return {"object": "list", "data": data, "model": NAME, "usage": usage}
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in request.get("tools", [])}
        asked = next((name for name in schemas if name.startswith("final_result")), None)
        answer = self.answers.pop(0) if self.answers else value_of(schemas[asked], schemas[asked]) if asked else "Fine."
        message: dict[str, Any] = {"role": "assistant", "content": answer if isinstance(answer, str) else None}
        if not isinstance(answer, str):
            function = {"name": asked, "arguments": json.dumps(answer)}
            message["tool_calls"] = [{"id": "call", "type": "function", "function": function}]
        return {
            "id": "scripted",
            "object": "chat.completion",
            "created": 0,
            "model": NAME,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": usage,
        }


def vector(text: str) -> list[float]:
    """Return an embedding that is near that of another text if they share words."""
    counts = Counter(zlib.crc32(word.encode()) % DIMENSIONS for word in re.findall(r"\w+", text.lower()))
    return [float(counts[n]) + 0.001 for n in range(DIMENSIONS)]


def value_of(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """Return the simplest value that fits a JSON schema."""
    if "$ref" in schema:
        return value_of(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "enum" in schema or "const" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return value_of(schema[several][0], root)
    kind = schema.get("type")
    if kind == "object":
        return {name: value_of(part, root) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [value_of(schema["items"], root) for _ in range(max(1, schema.get("minItems", 0)))]
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    if kind == "string":
        return ("A scripted answer. " * (1 + schema.get("minLength", 0) // 19)).strip()[: schema.get("maxLength")]
    return kind == "boolean" or None


@dataclass
class DagRun:
    """The outcome of a run.

    :param state: `success` or `failed`; `imported` if the file was only imported.
    :param states: the state of each task; that of the n-th mapped one is `task[n]`.
    :param returned: what each task returned, if anything, by the same names.
    :param log: what it printed.
    """

    state: str
    states: dict[str, str]
    returned: dict[str, Any]
    log: str


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    """The scripted model, which runs as long as the test does."""
    script = ScriptedModel()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            content = json.dumps(script.reply(json.loads(body))).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        script.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield script
        server.shutdown()


@pytest.fixture(scope="session")
def airflow_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of an Airflow for these tests only."""
    return tmp_path_factory.mktemp("airflow")


@pytest.fixture
def run_dag(model: ScriptedModel, airflow_home: Path, tmp_path: Path) -> Callable[..., DagRun]:
    """Run the DAG of a file to its end, in a process of its own, without retries; `run=False` only imports the file.

    Each request to a person is approved. The DAG's connections are the scripted model and an empty vector store: those
    of your environment are not used.
    """

    def run_dag(file: str, conf: dict[str, Any] | None = None, run: bool = True) -> DagRun:
        left = tmp_path / "left.json"
        command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("dag_run.py"))]
        done = subprocess.run(
            [*command, str(PROJECT / file), json.dumps((conf or {}) if run else None), str(left)],
            env=environment(model.url, airflow_home, tmp_path),
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, f"{file} did not run:\n{done.stdout}"
        return DagRun(**json.loads(left.read_text()), log=done.stdout)

    return run_dag


def environment(model_url: str, airflow_home: Path, data: Path) -> dict[str, str]:
    def model_connection(name: str) -> str:
        return json.dumps({"conn_type": "pydanticai", "host": model_url, "password": "none", "extra": {"model": name}})

    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "GENAI_", "OPENAI_"))}
    return kept | {
        "AIRFLOW_HOME": str(airflow_home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW_CONN_PYDANTICAI_DEFAULT": model_connection(f"openai-chat:{NAME}"),
        "AIRFLOW_CONN_EMBEDDINGS_DEFAULT": model_connection(f"openai:{NAME}"),
        "AIRFLOW_CONN_VECTOR_STORE_DEFAULT": json.dumps({"conn_type": "lancedb", "host": str(data / "lancedb")}),
        "GENAI_STORAGE": f"file://{data / 'artifacts'}",
        "PYTHONPATH": str(PROJECT),
        "NO_PROXY": "127.0.0.1",
    }
