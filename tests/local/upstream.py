"""A tiny fake of the server of models behind the emulator."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Upstream:
    """Answers each question with itself; one "bad" is refused, and one "wait" is answered when `go` is set.

    :param url: its base URL; its one model is "m".
    """

    def __init__(self) -> None:
        self.url = ""
        self.chats: list[dict[str, Any]] = []
        self.go = threading.Event()

    def asked(self) -> list[str]:
        """The questions, the oldest first."""
        return [chat["messages"][-1]["content"] for chat in self.chats]


@contextmanager
def answering() -> Iterator[Upstream]:
    """Run one."""
    upstream = Upstream()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(200, {"data": [{"id": "m"}]})

        def do_POST(self) -> None:
            chat = json.loads(self.rfile.read(int(self.headers["content-length"])))
            upstream.chats.append(chat)
            question = chat["messages"][-1]["content"]
            if question == "wait":
                upstream.go.wait(60)
            choice = {"index": 0, "message": {"role": "assistant", "content": question}}
            good = question != "bad"
            self._answer(
                200 if good else 400, {"model": "m", "choices": [choice]} if good else {"error": {"code": "x"}}
            )

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        upstream.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield upstream
        upstream.go.set()
        server.shutdown()
