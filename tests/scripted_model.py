"""A fake of a model's server, for tests and benchmarks: it answers at once, or as late and badly as scripted.

    python -m tests.scripted_model --port 8100 --latency 0.3

It speaks OpenAI's chat API. Each answer is decided by the last number in the row's text, so that the answers to
different rows differ: with number n (0 where there is none) the call of the output tool has the (n mod k)-th of the
k values that each of its fields may have ("a scripted text" or true where any will do). Words in the text make it
misbehave: REFUSE (400), TOOLONG (400, context length), NONSENSE (a value that is not allowed), DOWN (503, always).

`GET /seen` lists every request: when it came (seconds since the epoch), its row's text, the number of requests that
were then in flight, the status of its answer (None until it is answered), and its header `x-sent`, if it has one.
`POST /script` takes `latency` (seconds), `refuse` (the share of requests that get a 429 with `Retry-After: 1`, evenly
spread) and `faults` (for a part of the text, the status of its answer, which is not to be retried), and forgets all it
has seen. With `labels` (for a text, its right values) the quality of answers is a known function of the prompt:
`quality` gives, for a part of the prompt (the longest counts), the share of texts that get their label. Which ones
these are depends on the text alone, so that a better prompt is right wherever a worse one is.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from local.processes import free_ports
from tests.conftest import KEY, PROJECT
from tests.stack import wait_until

ERRORS = {
    "REFUSE": (400, "content_policy_violation"),
    "TOOLONG": (400, "context_length_exceeded"),
    "DOWN": (503, "server_error"),
}


class ScriptedModel:
    """The server's state and its endpoints."""

    def __init__(self, latency: float = 0.0, refuse: float = 0.0) -> None:
        self.latency, self.refuse = latency, refuse
        self.faults: dict[str, int] = {}
        self.labels: dict[str, dict[str, str]] = {}
        self.quality: dict[str, float] = {}
        self._seen: list[dict[str, Any]] = []
        self._in_flight = 0
        self._refusals = 0.0
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._answer, methods=["POST"]),
                Route("/v1/embeddings", self._embed, methods=["POST"]),
                Route("/seen", self._list_seen),
                Route("/script", self._script, methods=["POST"]),
            ]
        )

    async def _answer(self, request: Request) -> JSONResponse:
        body = await request.json()
        text = _last_text(body["messages"])
        self._in_flight += 1
        seen = self._note(request, text)
        try:
            await asyncio.sleep(self.latency)
        finally:
            self._in_flight -= 1
        response = self._response(body, text)
        seen["status"] = response.status_code
        return response

    def _note(self, request: Request, text: str) -> dict[str, Any]:
        sent = request.headers.get("x-sent")
        seen = {"time": time.time(), "text": text, "in_flight": self._in_flight, "status": None, "sent": sent}
        self._seen.append(seen)
        return seen

    async def _embed(self, request: Request) -> JSONResponse:
        body = await request.json()
        self._note(request, body["input"][0])["status"] = 200
        data = [{"object": "embedding", "index": n, "embedding": [0.5, 0.25]} for n in range(len(body["input"]))]
        usage = {"prompt_tokens": 10, "total_tokens": 10}
        return JSONResponse({"object": "list", "data": data, "model": body["model"], "usage": usage})

    def _response(self, body: dict[str, Any], text: str) -> JSONResponse:
        self._refusals += self.refuse
        if self._refusals >= 1:
            self._refusals -= 1
            return JSONResponse(_error("rate_limit_exceeded"), 429, {"Retry-After": "1"})
        for word, status in self.faults.items():
            if word in text:
                return JSONResponse(_error(None), status, {"x-should-retry": "false"})
        for word, (status, code) in ERRORS.items():
            if word in text:
                return JSONResponse(_error(code), status)
        (tool,) = body["tools"]
        numbers = re.findall(r"\d+", text) or ["0"]
        arguments = {}
        for name, schema in tool["function"]["parameters"]["properties"].items():
            any_value = [True] if schema.get("type") == "boolean" else ["a scripted text"]
            values = ["nonsense"] if "NONSENSE" in text else schema.get("enum", any_value)
            arguments[name] = values[int(numbers[-1]) % len(values)]
            if label := self.labels.get(text, {}).get(name):
                others = [value for value in values if value != label]
                arguments[name] = label if self._is_right(body, text) else others[0]
        call = {"name": tool["function"]["name"], "arguments": json.dumps(arguments)}
        message = {"role": "assistant", "tool_calls": [{"id": "call", "type": "function", "function": call}]}
        return JSONResponse(
            {
                "id": "chatcmpl-scripted",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
            }
        )

    def _is_right(self, body: dict[str, Any], text: str) -> bool:
        prompt = json.dumps([message for message in body["messages"] if message["role"] == "system"])
        part = max((part for part in self.quality if part in prompt), key=len, default="")
        share = self.quality.get(part, 0.0)
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 16**8 < share

    async def _list_seen(self, request: Request) -> JSONResponse:
        return JSONResponse(self._seen)

    async def _script(self, request: Request) -> JSONResponse:
        script = await request.json()
        self.latency, self.refuse, self.faults = script["latency"], script["refuse"], script["faults"]
        self.labels, self.quality = script["labels"], script["quality"]
        self._seen, self._refusals = [], 0.0
        return JSONResponse({})


def _last_text(messages: list[dict[str, Any]]) -> str:
    content = next(message["content"] for message in messages if message["role"] == "user")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _error(code: str | None) -> dict[str, Any]:
    return {"error": {"code": code, "message": "This was asked for.", "type": "scripted"}}


class ScriptedServer:
    """The client of a running server.

    :param url: without `/v1`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url)

    def script(self, **script: Any) -> None:
        """Set how the server behaves from now on, and forget what it has seen."""
        usual = {"latency": 0, "refuse": 0, "faults": {}, "labels": {}, "quality": {}}
        self._http.post("/script", json=usual | script).raise_for_status()

    def seen(self) -> list[dict[str, Any]]:
        """List every request since `script`, oldest first."""
        return list(self._http.get("/seen").raise_for_status().json())

    def calls(self) -> Counter[str]:
        """Count how often each text was asked."""
        return Counter(each["text"] for each in self.seen())

    def answered(self) -> Counter[str]:
        """Count how often each text was answered, and so paid."""
        return Counter(each["text"] for each in self.seen() if each["status"] == 200)

    def connection(self, **extra: Any) -> str:
        """Return a connection to it as JSON, for AIRFLOW_CONN_*; a call costs CALL_USD."""
        extra = {"model": "openai-chat:scripted", "usd_per_million_tokens": {"input": 1.0, "output": 10.0}} | extra
        host = f"{self.url}/v1"
        return json.dumps({"conn_type": "pydanticai", "host": host, "password": KEY, "extra": extra})


# What a text without a number gets, where a category and a summary are asked for.
ANSWER = {"category": "billing", "summary": "a scripted text"}
CALL_USD = (100 * 1.0 + 10 * 10.0) / 1e6


@contextmanager
def running() -> Iterator[ScriptedServer]:
    """Run a server in a process of its own."""
    (port,) = free_ports(1)
    with subprocess.Popen([sys.executable, "-m", "tests.scripted_model", "--port", str(port)], cwd=PROJECT) as process:
        try:
            server = ScriptedServer(f"http://127.0.0.1:{port}")
            wait_until(lambda: _answers(server))
            yield server
        finally:
            process.terminate()


def _answers(server: ScriptedServer) -> bool:
    try:
        return server.seen() is not None
    except httpx.TransportError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.scripted_model", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    arguments = parser.parse_args()
    uvicorn.run(ScriptedModel(arguments.latency).app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
