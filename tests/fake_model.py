"""A fake of a language model for the Kafka tests and benchmarks: OpenAI's chat API over real HTTP, with given answers.

It answers every text alike, after a given time, and counts how often each was asked. `python -m tests.fake_model` runs
it as a process of its own, whose faults are set by `POST /faults`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from local.processes import free_ports

ANSWER = {"category": "technical", "summary": "The customer cannot use the product."}


class FakeModel:
    """What the server does.

    :param latency_s: time until an answer comes.
    """

    def __init__(self, latency_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self.status = 200  # of every answer
        self.faults: dict[str, int] = {}  # status by a word of the text
        self.asked: Counter[str] = Counter()  # answered requests by text
        self.in_flight = 0
        self.most_in_flight = 0

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        text = _text(body["messages"][-1]["content"])
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            await asyncio.sleep(self.latency_s)
        finally:
            self.in_flight -= 1
        status = next((status for word, status in self.faults.items() if word in text), self.status)
        if status != 200:
            error = {"message": "This is a fault of the fake.", "type": "fault", "code": None}
            return JSONResponse({"error": error}, status, {"x-should-retry": "false"})
        self.asked[text] += 1
        return JSONResponse(_completion(body))

    async def set_faults(self, request: Request) -> Response:
        for name, value in (await request.json()).items():
            setattr(self, name, value)
        return Response()

    async def report(self, _: Request) -> Response:
        return JSONResponse({"asked": self.asked, "most_in_flight": self.most_in_flight})

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/faults", self.set_faults, methods=["POST"]),
                Route("/report", self.report),
            ]
        )


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _completion(body: dict[str, Any]) -> dict[str, Any]:
    call = {"name": "final_result", "arguments": json.dumps(ANSWER)}
    message = {"role": "assistant", "content": None}
    message["tool_calls"] = [{"id": "call-1", "type": "function", "function": call}]
    return {
        "id": "chat-1",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": "tool_calls", "message": message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


@contextmanager
def serve(latency_s: float = 0.0, port: int = 0) -> Iterator[tuple[FakeModel, str]]:
    """The fake in a thread of this process, and its base URL."""
    model = FakeModel(latency_s)
    port = port or free_ports(1)[0]
    server = uvicorn.Server(uvicorn.Config(model.app(), port=port, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    try:
        yield model, f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join(10)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.fake_model", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    arguments = parser.parse_args()
    app = FakeModel(arguments.latency).app()
    uvicorn.run(app, port=arguments.port, log_level="error", access_log=False)
