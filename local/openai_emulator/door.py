"""What every request passes: the log, the check of the key, and the faults that were asked for."""

import asyncio
import hmac
import logging
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local.api_error import ApiError

from .controls import Controls, Fault

log = logging.getLogger("local.openai_emulator")


class Door:
    """ASGI middleware; must be the outermost one, as it closes connections."""

    def __init__(self, app: ASGIApp, controls: Controls, token: str | None) -> None:
        self._app = app
        self._controls = controls
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        status: int | None = None

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        controlled = scope["path"].startswith("/emulator")
        try:
            if controlled:
                await self._app(scope, receive, sending)
            elif not self._known(scope):
                error = ApiError("Incorrect API key provided.", code="invalid_api_key", status=401)
                await JSONResponse(error.body(), error.status)(scope, receive, sending)
            elif fault := self._controls.fault(scope):
                await self._fail(fault, scope, receive, sending, transport=_transport(send))
            else:
                await self._app(scope, receive, sending)
        finally:
            if not controlled:
                self._controls.note(scope, status)
            log.info("%s %s %s", scope["method"], scope["raw_path"].decode("latin-1"), status or "dropped")

    def _known(self, scope: Scope) -> bool:
        given = Headers(scope=scope).get("authorization", "")
        return not self._token or hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode())

    async def _fail(
        self, fault: Fault, scope: Scope, receive: Receive, send: Send, transport: asyncio.Transport
    ) -> None:
        if fault.status:
            headers = {} if fault.retry_after is None else {"retry-after": f"{fault.retry_after:g}"}
            error = ApiError(fault.message, code=fault.code, status=fault.status)
            await JSONResponse(error.body(), fault.status, headers)(scope, receive, send)
            return
        answer: list[Message] = []

        async def hold(message: Message) -> None:
            answer.append(message)

        await asyncio.sleep(fault.delay_before or 0)
        if fault.drop != "before":
            await self._app(scope, receive, hold)
        if fault.drop:
            transport.close()
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        await asyncio.sleep(fault.delay or 0)
        for message in answer:
            await send(message)


def _transport(send: Any) -> asyncio.Transport:
    """The connection of a request: uvicorn's `send` is a method of the object that has it."""
    transport: asyncio.Transport = send.__self__.transport
    return transport
