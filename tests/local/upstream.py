"""A tiny fake of the server of models behind the emulator."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Upstream(BaseHTTPRequestHandler):
    """Has the model "m", and answers each question with itself; "bad" is refused, "wait" is answered on `go`."""

    protocol_version = "HTTP/1.1"
    url: str
    chats: list[dict[str, Any]]
    go: threading.Event

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        chat = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.chats.append(chat)
        question = chat["messages"][-1]["content"]
        if question == "wait":
            self.go.wait(60)
        choice = {"index": 0, "message": {"role": "assistant", "content": question}}
        self._answer(400 if question == "bad" else 200, {"model": "m", "choices": [choice]})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    @classmethod
    def asked(cls) -> list[str]:
        """The questions, the oldest first."""
        return [chat["messages"][-1]["content"] for chat in cls.chats]


@contextmanager
def answering() -> Iterator[type[Upstream]]:
    """Run one."""
    Upstream.chats, Upstream.go = [], threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        Upstream.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield Upstream
        Upstream.go.set()
        server.shutdown()
