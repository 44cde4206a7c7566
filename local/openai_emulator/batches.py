"""`/v1/batches`: the requests are answered one by one by the server behind it; price and window are fakes."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from local.api_error import ApiError

from .collection import ENDED, UNNAMED_ERROR, Collection
from .store import End, Kept, Metadata, Outcome, Store, new_id

log = logging.getLogger(__name__)


class BatchRequest(BaseModel):
    """What a client asks for. Fields that the emulator does not need are ignored."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None


class BatchBody(BaseModel, extra="allow"):
    """What is asked of a model."""

    model: str


class BatchLine(BaseModel):
    """A line of an input file."""

    custom_id: str
    method: Literal["POST"]
    url: Literal["/v1/chat/completions"]
    body: BatchBody


class Batches(Collection):
    """The batches of the emulator.

    :param answer: answers the body of a chat request.
    """

    def __init__(self, store: Store, answer: Callable[[bytes], Awaitable[Response]]) -> None:
        super().__init__("/v1/batches", store, store.batches)
        self._answer = answer
        self._running: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self.router.add_api_route("", self.create, methods=["POST"])

    async def create(self, wanted: BatchRequest) -> dict[str, Any]:
        """Accept a batch, which is stored before the answer goes out."""
        now = int(time.time())
        shown = {
            "id": new_id("batch_"),
            "object": "batch",
            "endpoint": wanted.endpoint,
            "completion_window": wanted.completion_window,
            "status": "validating",
            "input_file_id": self.store.input_file(wanted.input_file_id, "batch", "input_file_id"),
            **dict.fromkeys(("output_file_id", "error_file_id", "errors")),
            "created_at": now,
            "expires_at": now + 24 * 3600,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": wanted.metadata,
        }
        self.add(shown, now)
        self.bring_up_to_date()
        return shown

    def bring_up_to_date(self) -> None:
        """Start every batch that has not ended, including those of an earlier process."""
        for name, batch in self.kept.items():
            if batch.shown["status"] not in ENDED and name not in self._running:
                self._running[name] = asyncio.get_running_loop().create_task(self._run(batch))
                self._running[name].add_done_callback(partial(self._done, name))

    def finish(self, batch: Kept, status: End) -> None:
        """End a batch as soon as the request in flight is answered."""
        batch.outcome = Outcome(status=status)
        batch.shown["status"] = "cancelling" if status == "cancelled" else batch.shown["status"]
        self.store.save()
        self._changed.set()
        self._changed.clear()

    def _done(self, name: str, task: asyncio.Task[None]) -> None:
        del self._running[name]
        if not task.cancelled() and (error := task.exception()):
            log.error("Batch %s", name, exc_info=error)
            self._fail(self.kept[name], [{"code": "server_error", "message": "The emulator's log has the reason."}])

    async def _run(self, batch: Kept) -> None:
        shown = batch.shown
        requests, problems = await run_in_threadpool(_read, self.store.content(shown["input_file_id"]))
        shown["request_counts"] = counts = {"total": len(requests), "completed": 0, "failed": 0}
        if problems:
            return self._fail(batch, problems)
        results: dict[str, dict[str, Any]] = {}
        for request in requests:
            if await self._is_over(batch, len(results)):
                break
            result = results[request["custom_id"]] = await self._result(request)
            counts["completed" if _is_answer(result) else "failed"] += 1
        await self._is_over(batch, len(results))  # a batch may be held after its last answer
        if batch.outcome.status == "failed":
            return self._fail(batch, [batch.outcome.error or UNNAMED_ERROR])
        return self._write_results(batch, requests, results)

    async def _is_over(self, batch: Kept, done: int) -> bool:
        """Wait as long as the batch is held, and return whether it ends now."""
        while batch.outcome.hold and done >= batch.outcome.after:
            batch.shown["status"] = batch.outcome.hold
            await self._changed.wait()
        if batch.shown["status"] != "cancelling":
            batch.shown["status"] = "in_progress"
        return bool(batch.outcome.status) and done >= batch.outcome.after

    async def _result(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            reply = await self._answer(json.dumps(request["body"]).encode())
            status, body = reply.status_code, json.loads(bytes(reply.body))
        except ApiError as error:
            status, body = error.status, error.body()
        except ValueError:
            status, body = 502, ApiError("The answer of the server of models is not JSON.", status=502).body()
        response = {"status_code": status, "request_id": new_id("req_"), "body": body}
        return {"id": new_id("batch_req_"), "custom_id": request["custom_id"], "response": response, "error": None}

    def _fail(self, batch: Kept, problems: list[dict[str, Any]]) -> None:
        batch.shown |= {"status": "failed", "errors": {"object": "list", "data": problems}}
        self.store.save()

    def _write_results(self, batch: Kept, requests: list[dict[str, Any]], results: dict[str, dict[str, Any]]) -> None:
        ending = batch.outcome.status or "completed"
        lines: dict[str, list[dict[str, Any]]] = {"output": [], "error": []}
        for custom_id in (request["custom_id"] for request in requests):
            error = {"code": f"batch_{ending}", "message": f"The batch was {ending} before this request was executed."}
            undone = {"id": new_id("batch_req_"), "custom_id": custom_id, "response": None, "error": error}
            result = results.get(custom_id, undone)
            lines["output" if _is_answer(result) else "error"].append(result)
        changes: dict[str, Any] = {"status": ending, f"{ending}_at": int(time.time())}
        for kind, found in lines.items():
            if found:
                content = b"".join(json.dumps(each).encode() + b"\n" for each in found)
                file = self.store.add_file(f"{batch.shown['id']}_{kind}.jsonl", "batch_output", content)
                changes[f"{kind}_file_id"] = file["id"]
        batch.shown["request_counts"]["failed"] = len(lines["error"])
        batch.shown |= changes
        self.store.save()


def _is_answer(result: dict[str, Any]) -> bool:
    return bool(result["response"]) and result["response"]["status_code"] == 200


def _read(content: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the requests of an input file, and what is wrong with it."""
    requests: dict[str, dict[str, Any]] = {}
    problems: list[dict[str, Any]] = []
    models = set()
    for number, line in enumerate(content.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            request = BatchLine.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            param = ".".join(map(str, first["loc"]))
            code = f"invalid_{param}" if param else "invalid_json_line"
            problems.append({"code": code, "message": first["msg"], "line": number, "param": param})
            continue
        models.add(request.body.model)
        if request.custom_id in requests:
            problems.append({"code": "duplicate_custom_id", "message": "It was used before.", "line": number})
        elif len(models) > 1:
            problems.append({"code": "mismatched_model", "message": "There can be only one model.", "line": number})
        requests[request.custom_id] = request.model_dump()
    if not requests and not problems:
        problems = [{"code": "empty_file", "message": "The input file is empty."}]
    return list(requests.values()), problems[:10]
