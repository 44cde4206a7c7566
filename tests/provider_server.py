"""A fake of the chat APIs of several providers, for tests: one server on 127.0.0.1, which answers all of them.

The shapes are written after the public source of the providers' SDKs. No live account was used.
"""

from __future__ import annotations

import json
import threading
from binascii import crc32
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from httpx2 import URL, AsyncClient, AsyncHTTPTransport, Request, Response

from include.common.provider_http import ProviderClient

ANSWER = "All is well."
INPUT_TOKENS, OUTPUT_TOKENS = 11, 7


def openai_chat(_: dict[str, Any]) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER}}
    usage = {"prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS, "total_tokens": 18}
    # OpenRouter names its own provider, too; the others ignore that.
    common = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1764000000, "provider": "Anthropic"}
    choice["native_finish_reason"] = "stop"
    return {**common, "model": "answering-model", "choices": [choice], "usage": usage}


def openai_embeddings(body: dict[str, Any]) -> dict[str, Any]:
    data = [{"object": "embedding", "index": i, "embedding": [0.5, 0.25]} for i in range(len(body["input"]))]
    usage = {"prompt_tokens": INPUT_TOKENS, "total_tokens": INPUT_TOKENS}
    return {"object": "list", "data": data, "model": "answering-model", "usage": usage}


def anthropic_stream() -> bytes:
    """Server-sent events, as the SDK asks for a stream where an answer may be long."""
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "answering-model", "content": []}
    started = {"input_tokens": INPUT_TOKENS, "output_tokens": 1}
    events = [
        {"type": "message_start", "message": {**message, "usage": started}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": ANSWER}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": OUTPUT_TOKENS}},
        {"type": "message_stop"},
    ]
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()


def google_generate(_: dict[str, Any]) -> dict[str, Any]:
    candidate = {"content": {"role": "model", "parts": [{"text": ANSWER}]}, "finishReason": "STOP", "index": 0}
    usage = {"promptTokenCount": INPUT_TOKENS, "candidatesTokenCount": OUTPUT_TOKENS, "totalTokenCount": 18}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "answering-model", "responseId": "r1"}


def bedrock_usage() -> dict[str, Any]:
    return {"inputTokens": INPUT_TOKENS, "outputTokens": OUTPUT_TOKENS, "totalTokens": 18}


def bedrock_converse(_: dict[str, Any]) -> dict[str, Any]:
    message = {"message": {"role": "assistant", "content": [{"text": ANSWER}]}}
    return {"output": message, "stopReason": "end_turn", "usage": bedrock_usage(), "metrics": {"latencyMs": 1}}


def bedrock_converse_stream() -> bytes:
    events = [
        ("messageStart", {"role": "assistant"}),
        ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": ANSWER}}),
        ("contentBlockStop", {"contentBlockIndex": 0}),
        ("messageStop", {"stopReason": "end_turn"}),
        ("metadata", {"usage": bedrock_usage(), "metrics": {"latencyMs": 1}}),
    ]
    return b"".join(aws_event(kind, payload) for kind, payload in events)


def aws_event(kind: str, payload: dict[str, Any]) -> bytes:
    """A message of Amazon's event stream encoding: lengths, headers and payload, each with a checksum."""
    named = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    headers = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + len(value).to_bytes(2, "big") + value.encode()
        for name, value in named.items()
    )
    body = json.dumps(payload).encode()
    prelude = (16 + len(headers) + len(body)).to_bytes(4, "big") + len(headers).to_bytes(4, "big")
    message = prelude + crc32(prelude).to_bytes(4, "big") + headers + body
    return message + crc32(message).to_bytes(4, "big")


JSON_APIS = {
    "/chat/completions": openai_chat,
    "/embeddings": openai_embeddings,
    ":generateContent": google_generate,
    "/converse": bedrock_converse,
}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        self.server.seen.append((path, self.headers, body.decode()))  # type: ignore[attr-defined]
        if path == "/token":
            token = {"access_token": "google-access-token", "expires_in": 3600, "token_type": "Bearer"}
            self._answer(json.dumps(token).encode())
        elif path.endswith("/converse-stream"):
            self._answer(bedrock_converse_stream(), "application/vnd.amazon.eventstream")
        elif path.endswith("/v1/messages"):
            self._answer(anthropic_stream(), "text/event-stream")
        else:
            (answer,) = (answer for end, answer in JSON_APIS.items() if path.endswith(end))
            self._answer(json.dumps(answer(json.loads(body))).encode())

    def _answer(self, body: bytes, content_type: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class ProviderServer:
    """The running server. `seen` has the path, headers and body of each request; `asked`, the URLs before rerouting."""

    def __init__(self, url: str, seen: list[tuple[str, Any, str]]) -> None:
        self.url = url
        self.seen = seen
        self.asked: list[str] = []

    def client(self, hooks: Any, **kwargs: Any) -> AsyncClient:
        """An HTTP client that sends every request here, whatever its host is, over real HTTP."""
        server = self

        class Rerouting(AsyncHTTPTransport):
            async def handle_async_request(self, request: Request) -> Response:
                server.asked.append(str(request.url))
                here = URL(server.url)
                request.url = request.url.copy_with(scheme="http", host=here.host, port=here.port)
                return await super().handle_async_request(request)

        return ProviderClient(hooks, **kwargs, transport=Rerouting())


@contextmanager
def running() -> Iterator[ProviderServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.seen = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield ProviderServer(f"http://127.0.0.1:{server.server_port}", server.seen)  # type: ignore[attr-defined]
        server.shutdown()
