"""What tests and demonstrations ask of the emulator beside the API: outcomes of jobs, faults, and what was asked."""

import asyncio
import re
import time
from collections import deque
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, parse

_MOST_REQUESTS = 100_000


class Outcome(BaseModel):
    """What becomes of a job."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["succeeded", "failed", "cancelled"] | None = None
    error: dict[str, Any] | None = None
    hold: str | None = None


class NextOutcome(BaseModel):
    """The body of `POST /emulator/jobs`."""

    model_config = ConfigDict(extra="forbid")

    outcome: Outcome


class Fault(BaseModel):
    """The body of `POST /emulator/faults`."""

    model_config = ConfigDict(extra="forbid")

    method: str | None = None
    path: str = "/"
    times: Annotated[int, Field(ge=1)] = 1
    status: int | None = None
    code: str | None = None
    message: str = "This failure was asked for."
    retry_after: float | None = None
    drop: Literal["before", "after"] | None = None
    delay: float = 0
    delay_before: float = 0

    def meets(self, scope: Scope) -> bool:
        """Whether this request is one of those that fail."""
        return self.method in (None, scope["method"]) and re.match(self.path, scope["path"]) is not None


class Controls:
    """The outcomes and faults to come, and the requests that came."""

    def __init__(self) -> None:
        self._outcomes: deque[Outcome] = deque()
        self._faults: list[Fault] = []
        self._requests: deque[dict[str, Any]] = deque(maxlen=_MOST_REQUESTS)
        self.routes = [
            Route("/emulator/jobs", self._add_outcome, methods=["POST"]),
            Route("/emulator/faults", self._add_fault, methods=["POST"]),
            Route("/emulator/faults", self._clear_faults, methods=["DELETE"]),
            Route("/emulator/requests", self._list_requests),
        ]

    def next_outcome(self) -> Outcome | None:
        """What becomes of the job that is created now, if that was asked for."""
        return self._outcomes.popleft() if self._outcomes else None

    def fault(self, scope: Scope) -> Fault | None:
        """The fault that this request meets."""
        for fault in self._faults:
            if fault.meets(scope):
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
                return fault
        return None

    def note(self, scope: Scope, status: int | None) -> None:
        """Remember a request."""
        request = {"method": scope["method"], "path": scope["path"], "status": status, "time": time.time()}
        self._requests.append(request)

    async def _add_outcome(self, request: Request) -> JSONResponse:
        self._outcomes.append((await parse(NextOutcome, request)).outcome)
        return JSONResponse({"waiting": len(self._outcomes)})

    async def _add_fault(self, request: Request) -> JSONResponse:
        self._faults.append(await parse(Fault, request))
        return JSONResponse({"waiting": len(self._faults)})

    async def _clear_faults(self, request: Request) -> JSONResponse:
        self._faults.clear()
        return JSONResponse({"waiting": 0})

    async def _list_requests(self, request: Request) -> JSONResponse:
        return JSONResponse({"data": list(self._requests)})


class Middleware:
    """Notes each request to `/v1`, asks for the key, and lets the faults happen."""

    def __init__(self, app: ASGIApp, controls: Controls, token: str | None) -> None:
        self._app = app
        self._controls = controls
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1"):
            await self._app(scope, receive, send)
            return
        status: int | None = None

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._serve(scope, receive, noting)
        except Dropped:
            send.__self__.transport.abort()  # type: ignore[attr-defined]  # uvicorn's own connection
            await asyncio.sleep(0)
        finally:
            self._controls.note(scope, status)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._token and dict(scope["headers"]).get(b"authorization", b"").decode() != f"Bearer {self._token}":
            await _refuse(ApiError("Incorrect API key provided.", code="invalid_api_key", status=401), scope, receive, send)
            return
        fault = self._controls.fault(scope)
        if fault is None:
            await self._app(scope, receive, send)
            return
        await asyncio.sleep(fault.delay_before)
        if fault.drop == "before":
            raise Dropped
        if fault.status:
            error = ApiError(fault.message, code=fault.code, status=fault.status)
            headers = {} if fault.retry_after is None else {"retry-after": f"{fault.retry_after:g}"}
            await JSONResponse(error.body(), fault.status, headers)(scope, receive, send)
            return
        held: list[Message] = []

        async def hold(message: Message) -> None:
            held.append(message)

        await self._app(scope, receive, hold)
        await asyncio.sleep(fault.delay)
        if fault.drop == "after":
            raise Dropped
        for message in held:
            await send(message)


class Dropped(Exception):
    """Ends a request without an answer."""


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse(error.body(), error.status)(scope, receive, send)
