"""The server behind the emulator, which has the models. It may be away, or start later."""

import json
import threading
import time
from http.client import HTTPConnection, HTTPException
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from local.api_error import ApiError

FALLBACK_MODEL = "smollm2-135m-instruct"
_TIMEOUT_S = 300.0
_MODELS_TIMEOUT_S = 2.0
_MODELS_KNOWN_FOR_S = 30.0
_AWAY_FOR_S = 1.0


class Reply(NamedTuple):
    """An answer, unread."""

    status: int
    kind: str
    body: bytes


class Upstream:
    """An OpenAI-compatible server. Its methods block: call them in threads.

    :param url: such as `http://127.0.0.1:8080/v1`, or None.
    """

    def __init__(self, url: str | None) -> None:
        self._url = urlsplit(url or "")
        self._lock = threading.Lock()
        self._models: list[str] = []
        self._ask_again_at = 0.0

    def models(self) -> list[str]:
        """Its models, as they were at most half a minute ago; the fixed name if it has never been reached."""
        with self._lock:
            if time.monotonic() >= self._ask_again_at:
                try:
                    listed = json.loads(self._ask("GET", "/models", None, _MODELS_TIMEOUT_S).body)
                    self._models = [model["id"] for model in listed["data"]]
                    known_for = _MODELS_KNOWN_FOR_S
                except (ApiError, ValueError, LookupError, TypeError):
                    known_for = _AWAY_FOR_S
                self._ask_again_at = time.monotonic() + known_for
            return self._models or [FALLBACK_MODEL]

    def pass_on(self, path: str, body: bytes) -> Reply:
        """Post a body as it is."""
        return self._ask("POST", path, body, _TIMEOUT_S)

    def embed(self, model: str, texts: list[str]) -> list[list[float]]:
        """Vectors of texts, which must not be many."""
        body = json.dumps({"model": model, "input": texts, "encoding_format": "float"}).encode()
        reply = self.pass_on("/embeddings", body)
        if reply.status != 200:
            raise ApiError(f"The server of models answered {reply.status} to a request for embeddings.", status=502)
        items: list[dict[str, Any]] = json.loads(reply.body)["data"]
        return [item["embedding"] for item in sorted(items, key=lambda item: int(item["index"]))]

    def _ask(self, method: str, path: str, body: bytes | None, timeout: float) -> Reply:
        if not self._url.hostname:
            raise ApiError("The emulator was started without a server of models.", code="no_upstream", status=503)
        connection = HTTPConnection(self._url.hostname, self._url.port or 80, timeout=timeout)
        try:
            connection.request(method, self._url.path.rstrip("/") + path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            kind = response.getheader("content-type", "application/json")
            return Reply(response.status, kind, response.read())
        except (OSError, HTTPException) as error:
            message = f"The server of models did not answer: {type(error).__name__}"
            raise ApiError(message, code="upstream_unreachable", status=503) from None
        finally:
            connection.close()
