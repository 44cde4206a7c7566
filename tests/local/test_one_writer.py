"""`local.one_writer`: requests that write take turns, and never all of the server's threads."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from local import one_writer


class App:
    """A fake of the API server: notes how many requests are in it at once, and lets them go when `go` is set."""

    def __init__(self) -> None:
        self.inside = self.most = 0
        self.served: list[bytes] = []
        self.came, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.came.set()
        body = (await receive())["body"]
        if scope["method"] == "POST":
            await self.go.wait()
        self.served.append(body)
        self.inside -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


def client_of(app: App) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(one_writer.OneWriter(app)), base_url="http://airflow")


def test_writers_are_served_one_after_the_other_and_readers_do_not_wait_for_them():
    async def run() -> None:
        app = App()
        async with client_of(app) as client:
            writers = [asyncio.create_task(client.post("/api/v2/x", content=str(n))) for n in range(20)]
            await app.came.wait()
            assert (await client.get("/api/v2/x")).is_success
            app.most = 0
            app.go.set()
            answers = await asyncio.gather(*writers)
        assert [answer.text for answer in answers] == [str(n) for n in range(20)]
        assert app.most == 1

    asyncio.run(run())


def test_too_many_writers_are_refused_with_the_time_to_come_back_but_tasks_are_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(one_writer, "MAX_WAITING", 2)

    async def run() -> None:
        app = App()
        async with client_of(app) as client:
            writers = [asyncio.create_task(client.post("/api/v2/x")) for _ in range(2)]
            await app.came.wait()
            refused = await client.post("/api/v2/x")
            writers.append(asyncio.create_task(client.post("/execution/task-instances/1/heartbeat")))
            await asyncio.sleep(0)
            app.go.set()
            assert [answer.status_code for answer in await asyncio.gather(*writers)] == [200] * 3
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
        assert "busy" in refused.json()["detail"]

    asyncio.run(run())


def test_the_request_of_a_client_that_has_given_up_is_not_served():
    async def run() -> None:
        app = App()
        app.go.set()
        messages = [{"type": "http.request", "body": b"x", "more_body": False}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0) if len(messages) > 1 else messages[0]

        async def send(message: Any) -> None:
            raise AssertionError(message)

        scope = {"type": "http", "method": "POST", "path": "/api/v2/x", "headers": []}
        await one_writer.OneWriter(app)(scope, receive, send)
        assert app.served == []

    asyncio.run(run())
