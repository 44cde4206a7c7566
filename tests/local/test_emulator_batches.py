"""The emulator's batches, through the real client over HTTP. The server of models behind it is a tiny fake."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import openai  # noqa: TID253
import pytest

from local.openai_emulator import serve
from tests.emulator import Emulator
from tests.stack import wait_until

pytestmark = pytest.mark.one_stack

ROOT = Path(__file__).parents[2]
ENDPOINT: Any = "/v1/chat/completions"


class Upstream(BaseHTTPRequestHandler):
    """Says what it was asked; a question "bad" is refused, and one "wait" is answered when `go` is set."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[str]] = []
    go: ClassVar[threading.Event] = threading.Event()

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][0]["content"]
        self.asked.append(question)
        if question == "wait":
            self.go.wait(20)
        content = json.dumps({"error": {"code": "bad"}} if question == "bad" else {"said": question}).encode()
        self.send_response(400 if question == "bad" else 200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def upstream() -> Iterator[str]:
    Upstream.asked.clear()
    Upstream.go.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        Upstream.go.set()
        server.shutdown()


@pytest.fixture
def emulator(upstream: str, tmp_path: Path) -> Iterator[Emulator]:
    with serve(tmp_path / "emulator", upstream) as url:
        yield Emulator(url)


def line(custom_id: Any, question: str = "hi", **more: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": question}]}
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body} | more


def create(emulator: Emulator, *lines: Any, purpose: Any = "batch", **settings: Any) -> Any:
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    file = emulator.client().files.create(file=("in.jsonl", text.encode()), purpose=purpose)
    wanted = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h"} | settings
    return emulator.client().batches.create(**wanted)


def wait(emulator: Emulator, batch: Any, status: str = "completed") -> Any:
    wait_until(lambda: emulator.client().batches.retrieve(batch.id).status == status)
    return emulator.client().batches.retrieve(batch.id)


def results(emulator: Emulator, file: str | None) -> dict[str, Any]:
    text = emulator.client().files.content(file).text if file else ""
    return {each["custom_id"]: each for each in map(json.loads, text.splitlines())}


def test_requests_are_answered_by_the_server_behind_and_errors_are_in_a_file_of_their_own(emulator):
    batch = wait(emulator, create(emulator, line("a", "one"), line("b", "bad"), line("c", "two"), metadata={"k": "v"}))
    answers, errors = results(emulator, batch.output_file_id), results(emulator, batch.error_file_id)
    assert {key: each["response"]["body"] for key, each in answers.items()} == {
        "a": {"said": "one"},
        "c": {"said": "two"},
    }
    assert errors["b"]["response"]["status_code"] == 400
    assert batch.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
    assert (batch.metadata, batch.created_at <= batch.completed_at) == ({"k": "v"}, True)


@pytest.mark.parametrize(
    ("bad", "code", "where"),
    [
        ("{half", "invalid_json_line", 2),
        ("[]", "invalid_json_line", 2),
        (line("a"), "duplicate_custom_id", 2),
        (line(None), "missing_required_parameter", 2),
        (line("b", method="GET"), "invalid_method", 2),
        (line("b", url="/v1/embeddings"), "invalid_url", 2),
        (line("b", body={"model": "other"}), "mismatched_model", 2),
        (line("b", body={}), "missing_required_parameter", 2),
    ],
)
def test_a_bad_line_fails_the_batch_before_anything_is_asked(emulator, bad, code, where):
    batch = wait(emulator, create(emulator, line("a"), bad), "failed")
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, where)]
    assert Upstream.asked == []


def test_a_file_without_a_request_fails_the_batch(emulator):
    assert wait(emulator, create(emulator, "\n\n"), "failed").errors.data[0].code == "empty_file"


def test_what_is_no_batch_is_refused_at_once(emulator):
    for settings in ({"purpose": "fine-tune"}, {"endpoint": "/v1/embeddings"}, {"completion_window": "1h"}):
        with pytest.raises(openai.BadRequestError):
            create(emulator, line("a"), **settings)
    with pytest.raises(openai.BadRequestError, match="no such file"):
        create(emulator, line("a"), input_file_id="file-1")
    with pytest.raises(openai.NotFoundError):
        emulator.client().batches.retrieve("batch_1")


def test_the_list_is_paged_the_newest_first(emulator):
    ids = [create(emulator, line("a")).id for _ in range(5)]
    assert [batch.id for batch in emulator.client().batches.list(limit=2)] == ids[::-1]


def test_a_cancelled_batch_leaves_the_answers_that_it_had(emulator):
    emulator.next_batch(hold="in_progress", after=1)
    batch = create(emulator, line("a"), line("b"))
    wait_until(lambda: emulator.client().batches.retrieve(batch.id).request_counts.completed == 1)
    assert emulator.client().batches.cancel(batch.id).status == "cancelling"
    ended = wait(emulator, batch, "cancelled")
    assert list(results(emulator, ended.output_file_id)) == ["a"]
    assert results(emulator, ended.error_file_id)["b"]["error"]["code"] == "batch_cancelled"
    with pytest.raises(openai.ConflictError):
        emulator.client().batches.cancel(batch.id)


def test_a_held_batch_goes_on_and_one_may_expire_when_asked_to(emulator):
    emulator.next_batch(hold="validating")
    held = create(emulator, line("a"))
    emulator.set_batch(held.id, None)
    wait(emulator, held)
    emulator.next_batch(status="expired", after=1)
    expired = wait(emulator, create(emulator, line("a"), line("b")), "expired")
    assert results(emulator, expired.error_file_id)["b"]["error"]["code"] == "batch_expired"


@contextmanager
def process(folder: Path, upstream: str) -> Iterator[tuple[subprocess.Popen[str], Emulator]]:
    command = [sys.executable, "-m", "local.openai_emulator", "--port", "0", "--folder", str(folder)]
    with subprocess.Popen(
        [*command, "--upstream", upstream], cwd=ROOT, env={**os.environ}, stderr=subprocess.PIPE, text=True
    ) as started:
        try:
            assert started.stderr is not None
            ready = next(line for line in started.stderr if "ready on " in line)
            yield started, Emulator(ready.split()[-1])
        finally:
            started.kill()


def test_after_a_kill_a_batch_goes_on_where_it_was(upstream, tmp_path):
    with process(tmp_path, upstream) as (first, emulator):
        batch = create(emulator, line("a", "one"), line("b", "wait"), line("c", "two"))
        wait_until(lambda: "wait" in Upstream.asked)
        first.send_signal(signal.SIGKILL)
        first.wait()
    (journal,) = (tmp_path / "answers").iterdir()
    with journal.open("ab") as file:
        file.write(b'{"half')
    Upstream.go.set()
    with process(tmp_path, upstream) as (_, emulator):
        ended = wait(emulator, batch)
        assert list(results(emulator, ended.output_file_id)) == ["a", "b", "c"]
    assert Upstream.asked == ["one", "wait", "wait", "two"]
