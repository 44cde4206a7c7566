"""What every request meets first: the log, the check of the key, and the faults that a test asked for."""

import asyncio
import logging
import re
from collections import deque
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local.api_error import ApiError

log = logging.getLogger("local.openai_emulator")


class Fault(BaseModel):
    """What some requests meet; see the package's docstring."""

    model_config = ConfigDict(extra="forbid")

    method: str
    path: str
    times: int = 1
    status: int | None = None
    code: str | None = None
    retry_after: float | None = None
    drop: Literal["before", "after"] | None = None
    delay: float = 0


class Controls:
    """ASGI middleware. `faults` are those to come, `requests` those that came."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token
        self.faults: list[Fault] = []
        self.requests: deque[dict[str, str]] = deque(maxlen=100_000)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        method, path = scope["method"], scope["path"]
        if not path.startswith("/v1/"):
            return await self._app(scope, receive, send)
        # The query is not logged: it may have what a caller keeps to itself.
        log.info("%s %s", method, scope["raw_path"].decode("latin-1"))
        self.requests.append({"method": method, "path": path})
        if self._token and Headers(scope=scope).get("authorization") != f"Bearer {self._token}":
            return await _refuse(ApiError("Incorrect API key provided.", code="invalid_api_key", status=401))(
                scope, receive, send
            )
        fault = next((f for f in self.faults if f.method == method and re.match(f.path, path)), None)
        if fault is None:
            return await self._app(scope, receive, send)
        fault.times -= 1
        if not fault.times:
            self.faults.remove(fault)
        return await self._fail(fault, scope, receive, send)

    async def _fail(self, fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
        if fault.status:
            error = ApiError("This failure was asked for.", code=fault.code, status=fault.status)
            headers = {} if fault.retry_after is None else {"retry-after": f"{fault.retry_after:g}"}
            return await _refuse(error, headers)(scope, receive, send)
        answer: list[Message] = []

        async def hold(message: Any) -> None:
            answer.append(message)

        if fault.drop != "before":
            await self._app(scope, receive, hold)
        if fault.drop:
            # The server ends a connection on which an answer was begun and not finished.
            return await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        await asyncio.sleep(fault.delay)
        for message in answer:
            await send(message)
        return None


def _refuse(error: ApiError, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(error.body(), error.status, headers)
