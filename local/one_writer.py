"""One request that writes at a time, as SQLite has one writer at a time."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_WAITING = 200
RETRY_AFTER_S = 5


class OneWriter:
    """ASGI middleware: requests that may write are served one after the other, and refused with 503 beyond MAX_WAITING.

    Airflow's API server opens a transaction, and needs a thread (3.1) or its event loop (3.3) to commit it. If it let
    others in before that, they would wait for SQLite's lock in all of its threads, or in its loop: then none continues,
    and after the database's time-out the scheduler ends. Requests that wait here block neither.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self._app(scope, receive, send)
        from_a_task = scope["path"].startswith("/execution/")
        if self._waiting >= MAX_WAITING and not from_a_task:
            detail = f"The local stack is busy: {self._waiting} requests wait. Try again in {RETRY_AFTER_S} s."
            return await JSONResponse({"detail": detail}, 503, {"Retry-After": str(RETRY_AFTER_S)})(
                scope, receive, send
            )
        self._waiting += 1
        try:
            request = Request(scope, receive)
            # The body is read first, as a client that sends slowly must not block the others.
            messages: list[Message] = [{"type": "http.request", "body": await request.body()}]

            async def replay() -> Message:
                return messages.pop() if messages else await receive()

            async with self._turn:
                if not await request.is_disconnected():  # a client that gave up will ask again
                    await self._app(scope, replay, send)
        except ClientDisconnect:
            pass  # before its request was complete
        finally:
            self._waiting -= 1
