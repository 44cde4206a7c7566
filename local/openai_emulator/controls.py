"""What every request passes first: the log, the check of the key, and the faults that a test asked for."""

import asyncio
import logging
import re
from collections import deque
from typing import Literal

from pydantic import BaseModel, ConfigDict
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from local.api_error import ApiError

log = logging.getLogger("local.openai_emulator")


class Fault(BaseModel):
    """What happens to some requests; see the package's docstring."""

    model_config = ConfigDict(extra="forbid")

    method: str
    path: str
    times: int = 1
    status: int | None = None
    code: str | None = None
    retry_after: float = 0
    drop: Literal["before", "after"] | None = None
    delay: float = 0


class Dropped(Response):
    """An answer that is started and not finished, so that the server closes the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send only the head."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})


class Controls:
    """Middleware. `faults` are still to come, `requests` are those received so far."""

    def __init__(self, token: str | None) -> None:
        self._token = token
        self.faults: list[Fault] = []
        self.requests: deque[dict[str, str]] = deque(maxlen=100_000)

    async def __call__(self, request: Request, answer: RequestResponseEndpoint) -> Response:
        """Serve a request."""
        method, path = request.method, request.url.path
        if not path.startswith("/v1/"):
            return await answer(request)
        # Not decoded, as line breaks would forge log lines, and without the query, which may have a caller's secrets.
        log.info("%s %s", method, request.scope["raw_path"].decode("latin-1"))
        self.requests.append({"method": method, "path": path})
        if self._token and request.headers.get("authorization") != f"Bearer {self._token}":
            return ApiError("Incorrect API key provided.", code="invalid_api_key", status=401).response()
        fault = next((f for f in self.faults if f.method == method and re.match(f.path, path)), None)
        if fault is None:
            return await answer(request)
        fault.times -= 1
        if not fault.times:
            self.faults.remove(fault)
        if fault.status:
            error = ApiError("This failure was asked for.", code=fault.code, status=fault.status)
            return error.response({"retry-after": f"{fault.retry_after:g}"})
        response = Dropped() if fault.drop == "before" else await answer(request)
        await asyncio.sleep(fault.delay)
        return Dropped() if fault.drop else response
