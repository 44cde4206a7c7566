"""`/v1/batches`: the requests are answered one by one, as fast as the server behind does; price and window are fakes.

Each answer is written down as it comes, so that after a `kill -9` a batch goes on where it was.
"""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from local.api_error import ApiError

from .batch_input import ENDPOINT, check, requests
from .batch_models import BatchError, BatchOutcome, BatchRequest, Change, NextOutcome
from .files import as_page
from .reading import parse, query_int
from .store import File, Store, new_id

WINDOW_S = 24 * 3600
# The purpose of the files in which batches leave their results.
RESULTS = "batch_output"
ENDED = ("completed", "failed", "expired", "cancelled")
_MOST_LISTED = 100
_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
_UNFINISHED = {
    "expired": "This request could not be executed before the completion window expired.",
    "cancelled": "This request was not executed before the batch was cancelled.",
}

log = logging.getLogger(__name__)


class Batches:
    """The batches of the emulator.

    :param answer: answers the body of a chat request.
    """

    def __init__(self, store: Store, answer: Callable[[bytes], Awaitable[Response]]) -> None:
        self._store = store
        self._answer = answer
        self._outcomes: deque[BatchOutcome] = deque()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        path, control = "/v1/batches", "/emulator/batches"
        self.routes = [
            Route(path, self.create, methods=["POST"]),
            Route(path, self.listing),
            Route(path + "/{batch}", self.retrieve),
            Route(path + "/{batch}/cancel", self.cancel, methods=["POST"]),
            Route(control, self.add_outcome, methods=["POST"]),
            Route(control, self.list_all),
            Route(control + "/{batch}", self.change, methods=["POST"]),
        ]

    async def create(self, request: Request) -> JSONResponse:
        """Take a batch, which is kept when the answer goes out."""
        wanted = await parse(BatchRequest, request)
        file = self._store.file(wanted.input_file_id)
        if file is None or file.purpose != "batch":
            reason = "no such file" if file is None else f"its purpose is {file.purpose}, not batch"
            raise ApiError(f"input_file_id {wanted.input_file_id}: {reason}", param="input_file_id")
        now = int(time.time())
        outcome = self._outcomes.popleft() if self._outcomes else BatchOutcome()
        batch = {
            "id": new_id("batch").replace("-", "_"),
            "object": "batch",
            "endpoint": ENDPOINT,
            "completion_window": "24h",
            "status": "validating",
            "input_file_id": file.id,
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
            "created_at": now,
            "expires_at": now + WINDOW_S,
            **{f"{name}_at": None for name in _TIMES},
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": wanted.metadata,
            "outcome": outcome.model_dump(),
        }
        self._store.add_batch(batch)
        self._go_on()
        return JSONResponse(_shown(batch))

    async def listing(self, request: Request) -> JSONResponse:
        """A page of batches, the newest first."""
        self._go_on()
        limit = query_int(request, "limit", 20, _MOST_LISTED)
        found = self._store.batches(request.query_params.get("after"), limit + 1)
        return JSONResponse(as_page([_shown(batch) for batch in found], limit))

    async def retrieve(self, request: Request) -> JSONResponse:
        """A batch as it is now."""
        self._go_on()
        return JSONResponse(_shown(self._batch(request)))

    async def cancel(self, request: Request) -> JSONResponse:
        """End a batch. What is in flight still comes back."""
        batch = self._batch(request)
        if batch["status"] in ENDED:
            raise ApiError(f"Cannot cancel a batch with status '{batch['status']}'.", status=409)
        batch["outcome"]["status"], batch["outcome"]["after"] = "cancelled", 0
        self._move(batch, "cancelling")
        self._go_on()
        return JSONResponse(_shown(batch))

    async def add_outcome(self, request: Request) -> JSONResponse:
        """What becomes of the next batch."""
        self._outcomes.append((await parse(NextOutcome, request)).outcome)
        return JSONResponse({"waiting": len(self._outcomes)})

    async def list_all(self, request: Request) -> JSONResponse:
        """All batches, the newest first."""
        return JSONResponse({"object": "list", "data": [_shown(batch) for batch in self._store.batches()]})

    async def change(self, request: Request) -> JSONResponse:
        """Give a batch an end now, or let it go on."""
        change = await parse(Change, request)
        batch = self._batch(request)
        if batch["status"] in ENDED:
            raise ApiError(f"Batch {batch['id']} has ended: it is {batch['status']}.", param="status")
        batch["outcome"] |= {"status": change.status, "hold": None, "after": 0}
        self._save(batch)
        self._go_on()
        return JSONResponse(_shown(batch))

    def _batch(self, request: Request) -> dict[str, Any]:
        return self._store.batch(request.path_params["batch"])

    def _save(self, batch: dict[str, Any], *results: File) -> None:
        self._store.save_batch(batch, *results)
        self._changed.set()
        self._changed = asyncio.Event()

    def _move(self, batch: dict[str, Any], status: str, *results: File) -> None:
        batch["status"] = status
        if status in _TIMES:
            batch[f"{status}_at"] = batch[f"{status}_at"] or int(time.time())
        self._save(batch, *results)

    def _go_on(self) -> None:
        """Work on every batch that has not ended, also on those of a process before this one."""
        for batch in self._store.batches():
            if batch["status"] not in ENDED and batch["id"] not in self._running:
                task = asyncio.get_running_loop().create_task(self._run(batch["id"]))
                self._running[batch["id"]] = task
                task.add_done_callback(lambda done, name=batch["id"]: self._ended(name, done))  # type: ignore[misc]

    def _ended(self, batch: str, task: asyncio.Task[None]) -> None:
        del self._running[batch]
        if not task.cancelled() and (error := task.exception()):
            log.error("Batch %s", batch, exc_info=error)

    async def _run(self, name: str) -> None:
        batch = self._store.batch(name)
        content = self._store.content(batch["input_file_id"])
        if batch["status"] == "validating":
            total, problems = await run_in_threadpool(check, content)
            batch = self._store.batch(name)
            batch["request_counts"]["total"] = total
            if problems:
                batch["errors"] = {"object": "list", "data": [each.as_openai() for each in problems]}
                return self._move(batch, "failed")
            self._move(batch, "in_progress" if batch["status"] == "validating" else batch["status"])
        journal = self._store.answers / f"{name}.jsonl"
        done = await run_in_threadpool(_read_journal, journal)
        with journal.open("ab") as file:
            for _, request in requests(content):
                assert request is not None  # noqa: S101  (it was checked)
                if request["custom_id"] in done:
                    continue
                if await self._is_over(name, len(done)):
                    break
                result = await self._result(request)
                file.write(json.dumps(result).encode() + b"\n")
                file.flush()
                done[request["custom_id"]] = result
                batch = self._store.batch(name)
                batch["request_counts"] |= _counts(done)
                self._save(batch)
            await self._is_over(name, len(done))  # what is held at the end
        self._finish(name, content, done)
        return None

    async def _is_over(self, name: str, done: int) -> bool:
        """Wait as long as the batch is held, and tell whether it gets its end now."""
        while True:
            changed = self._changed
            batch = self._store.batch(name)
            outcome = batch["outcome"]
            now = done >= outcome["after"]
            if now and outcome["status"]:
                return True
            if not (now and outcome["hold"]):
                if batch["status"] not in ("validating", "in_progress", "cancelling"):  # it was held
                    self._move(batch, "in_progress")
                return False
            if batch["status"] != outcome["hold"]:
                self._move(batch, outcome["hold"])
                continue
            await changed.wait()

    async def _result(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            reply = await self._answer(json.dumps(request["body"]).encode())
            status, body = reply.status_code, json.loads(bytes(reply.body))
        except ApiError as error:
            status, body = error.status, error.body()
        except ValueError:
            status, body = 502, ApiError("The server of models gave no JSON.", status=502).body()
        response = {"status_code": status, "request_id": new_id("req"), "body": body}
        return {"id": new_id("batch_req"), "custom_id": request["custom_id"], "response": response, "error": None}

    def _finish(self, name: str, content: Path, done: dict[str, dict[str, Any]]) -> None:
        batch = self._store.batch(name)
        ending = batch["outcome"]["status"] or "completed"
        if ending == "failed":
            error = batch["outcome"]["error"] or BatchError().model_dump()
            batch["errors"] = {"object": "list", "data": [error]}
            return self._move(batch, "failed")
        lines: dict[str, list[dict[str, Any]]] = {"output": [], "error": []}
        for _, request in requests(content):
            result = done.get(request["custom_id"]) if request else None
            if request and result is None:
                error = {"code": f"batch_{ending}", "message": _UNFINISHED[ending]}
                custom_id = request["custom_id"]
                result = {"id": new_id("batch_req"), "custom_id": custom_id, "response": None, "error": error}
            if result:
                lines["output" if _is_answer(result) else "error"].append(result)
        files = []
        for kind, results in lines.items():
            if results:
                text = b"".join(json.dumps(each).encode() + b"\n" for each in results)
                file = File(new_id("file"), f"{name}_{kind}.jsonl", RESULTS, len(text), int(time.time()))
                self._store.content(file.id).write_bytes(text)
                batch[f"{kind}_file_id"] = file.id
                files.append(file)
        batch["request_counts"]["failed"] = len(lines["error"])
        batch["finalizing_at"] = int(time.time()) if ending == "completed" else None
        self._move(batch, ending, *files)
        return None


def _read_journal(journal: Path) -> dict[str, dict[str, Any]]:
    """The results that were written down whole; half of one, of a process that was killed, is cut off."""
    if not journal.exists():
        return {}
    text = journal.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        journal.write_bytes(whole)
    return {result["custom_id"]: result for result in map(json.loads, whole.split(b"\n")[:-1])}


def _is_answer(result: dict[str, Any]) -> bool:
    return bool(result["response"]) and result["response"]["status_code"] == 200


def _counts(done: dict[str, dict[str, Any]]) -> dict[str, int]:
    answered = sum(map(_is_answer, done.values()))
    return {"completed": answered, "failed": len(done) - answered}


def _shown(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "outcome"}
