"""`/v1/models`, and the answers: those of tuned models with examples in front, all others passed on."""

import json
import time
from dataclasses import replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from local.api_error import ApiError

from .life import Job
from .reading import read_body
from .shots import Shots
from .store import Store
from .upstream import Upstream


class Models:
    """The models of the emulator."""

    def __init__(self, store: Store, upstream: Upstream, embedding_model: str) -> None:
        self._store = store
        self._upstream = upstream
        self._embedding_model = embedding_model
        self._shots = Shots(store, upstream, embedding_model)
        self.routes = [
            Route("/v1/models", self.listing),
            Route("/v1/models/{model:path}", self.retrieve),
            Route("/v1/models/{model:path}", self.delete, methods=["DELETE"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
        ]

    def bases(self) -> list[str]:
        """The models that can be tuned."""
        return [model for model in self._upstream.models() if model != self._embedding_model]

    async def listing(self, request: Request) -> JSONResponse:
        """Those of the server behind, and the tuned ones."""
        names = await run_in_threadpool(self._upstream.models)
        tuned = [_tuned(job) for job in self._store.jobs() if job.has_model(time.time())]
        return JSONResponse({"object": "list", "data": [*(_as_openai(name, 0, "upstream") for name in names), *tuned]})

    async def retrieve(self, request: Request) -> JSONResponse:
        """What is known of a model."""
        name = request.path_params["model"]
        if job := self._job(name):
            return JSONResponse(_tuned(job))
        if name in await run_in_threadpool(self._upstream.models):
            return JSONResponse(_as_openai(name, 0, "upstream"))
        raise _not_found(name)

    async def delete(self, request: Request) -> JSONResponse:
        """Forget a tuned model."""
        name = request.path_params["model"]
        job = self._job(name)
        if job is None:
            if name in await run_in_threadpool(self._upstream.models):
                raise ApiError(f"{name} is not a tuned model.", param="model", status=403)
            raise _not_found(name)
        self._store.save_job(replace(job, model_deleted=True))
        return JSONResponse({"id": name, "object": "model", "deleted": True})

    async def chat(self, request: Request) -> Response:
        """An answer."""
        return await self.answer(await read_body(request))

    async def answer(self, raw: bytes) -> Response:
        """The answer to the body of a chat request."""
        body = _object(raw)
        name = str(body.get("model"))
        job = self._job(name)
        if job is None:
            if name.startswith("ft:"):
                raise _not_found(name)
            return await self._pass_on("/chat/completions", raw)
        if body.get("stream"):
            raise ApiError("Answers of tuned models can't be streamed.", param="stream")
        shown = await run_in_threadpool(self._shots.put_before, job, body)
        reply = await self._pass_on("/chat/completions", json.dumps(shown | {"model": job.model}).encode())
        if reply.status_code != 200:
            return reply
        return JSONResponse(json.loads(bytes(reply.body)) | {"model": name})

    async def embeddings(self, request: Request) -> Response:
        """Vectors."""
        return await self._pass_on("/embeddings", await read_body(request))

    async def _pass_on(self, path: str, body: bytes) -> Response:
        reply = await run_in_threadpool(self._upstream.pass_on, path, body)
        return Response(reply.body, reply.status, media_type=reply.kind)

    def _job(self, model: str) -> Job | None:
        """The job that made this model."""
        job = self._store.job_of_model(model)
        return job if job and job.has_model(time.time()) else None


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ApiError("The body must be a JSON object.", code="invalid_json")
    return body


def _not_found(name: str) -> ApiError:
    return ApiError(f"The model `{name}` does not exist.", param="model", code="model_not_found", status=404)


def _tuned(job: Job) -> dict[str, Any]:
    return _as_openai(job.tuned_model, int(job.ended_at(time.time()) or 0), "local")


def _as_openai(name: str, created: int, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}
