"""`/v1/models`, and the answers: of the server behind the emulator, and of models that jobs "made"."""

import json
import time
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from include.chat_examples import Example, examples

from .errors import ApiError, read_body
from .life import Job
from .store import Store

SHOTS = 4
MOST_EXAMPLES = 5_000
# What can be tuned when the server behind does not answer.
DEFAULT_MODEL = "smollm2-135m-instruct"
_EMBEDDING_BATCH = 500


class Answers:
    """The models of the emulator.

    :param upstream: base URL of the server that answers.
    """

    def __init__(self, store: Store, upstream: str) -> None:
        self._store = store
        self._upstream = httpx.Client(base_url=upstream, timeout=300)
        self._shown: dict[str, tuple[list[Example], Any]] = {}
        self.routes = [
            Route("/v1/models", self.listing),
            Route("/v1/models/{model:path}", self.retrieve),
            Route("/v1/models/{model:path}", self.delete, methods=["DELETE"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
        ]

    def close(self) -> None:
        """End the connections to the server behind."""
        self._upstream.close()

    def base_models(self) -> list[str]:
        """The models of the server behind."""
        try:
            answer = self._upstream.get("/models", timeout=5).raise_for_status().json()
        except httpx.HTTPError:
            return [DEFAULT_MODEL]
        return [model["id"] for model in answer["data"]]

    async def listing(self, request: Request) -> JSONResponse:
        """Base models and tuned ones."""
        base = await run_in_threadpool(self.base_models)
        tuned = [job.tuned_model for job in self._store.jobs() if job.has_model(time.time())]
        return JSONResponse({"object": "list", "data": [_model(name) for name in [*base, *tuned]]})

    async def retrieve(self, request: Request) -> JSONResponse:
        """One model."""
        name = request.path_params["model"]
        if self._maker(name) is None and name not in await run_in_threadpool(self.base_models):
            raise _no_model(name)
        return JSONResponse(_model(name))

    async def delete(self, request: Request) -> JSONResponse:
        """Forget a tuned model."""
        name = request.path_params["model"]
        job = self._maker(name)
        if job is None:
            raise _no_model(name)
        self._store.save_job(replace(job, model_deleted=True))
        return JSONResponse({"id": name, "object": "model", "deleted": True})

    async def embeddings(self, request: Request) -> Response:
        """Passed on."""
        return await self._pass_on("/embeddings", await read_body(request))

    async def chat(self, request: Request) -> Response:
        """Passed on; for a tuned model, with its nearest examples."""
        body = await read_body(request)
        try:
            wanted = json.loads(body)
            name, messages = wanted["model"], wanted["messages"]
            question = next(m["content"] for m in reversed(messages) if m["role"] == "user")
        except (ValueError, TypeError, KeyError, StopIteration):
            return await self._pass_on("/chat/completions", body)
        job = self._maker(name)
        if job is None:
            return await self._pass_on("/chat/completions", body)
        turns = await run_in_threadpool(self._nearest, job, str(question))
        system = [message for message in messages if message["role"] in ("system", "developer")]
        others = [message for message in messages if message not in system]
        asked = wanted | {"model": job.model, "messages": [*system, *turns, *others]}
        return await self._pass_on("/chat/completions", json.dumps(asked).encode(), name)

    def _maker(self, model: str) -> Job | None:
        job = self._store.job_of_model(model)
        return job if job and job.has_model(time.time()) else None

    def _nearest(self, job: Job, question: str) -> list[dict[str, str]]:
        """The nearest examples as turns, the nearest last."""
        if job.training_file not in self._shown:
            with self._store.content(job.training_file).open("rb") as file:
                learned = [each for each, _ in zip(examples(file), range(MOST_EXAMPLES), strict=False)]
            learned = [each for each in learned if each.messages[-1].weight != 0]
            vectors = self._embed([each.question[-1]["content"] for each in learned])
            self._shown[job.training_file] = (learned, vectors)
        learned, vectors = self._shown[job.training_file]
        best = np.argsort(vectors @ self._embed([question])[0])[-SHOTS:]
        return [
            {"role": role, "content": content}
            for index in best
            for role, content in (
                ("user", learned[index].question[-1]["content"]),
                ("assistant", learned[index].answer),
            )
        ]

    def _embed(self, texts: list[str]) -> Any:
        model = next((name for name in self.base_models() if name != DEFAULT_MODEL), DEFAULT_MODEL)
        vectors: list[list[float]] = []
        for start in range(0, len(texts), _EMBEDDING_BATCH):
            body = {"model": model, "input": texts[start : start + _EMBEDDING_BATCH]}
            answer = self._upstream.post("/embeddings", json=body).raise_for_status().json()
            vectors += [each["embedding"] for each in answer["data"]]
        return np.asarray(vectors)

    async def _pass_on(self, path: str, body: bytes, shown_as: str | None = None) -> Response:
        headers = {"content-type": "application/json", "authorization": "Bearer none"}
        try:
            answer = await run_in_threadpool(self._upstream.post, path, content=body, headers=headers)
        except httpx.HTTPError as error:
            message = f"The server behind the emulator does not answer ({type(error).__name__})."
            raise ApiError(message, status=502) from None
        if shown_as and answer.is_success:
            return JSONResponse(answer.json() | {"model": shown_as})
        return Response(answer.content, answer.status_code, media_type="application/json")


def _no_model(name: str) -> ApiError:
    return ApiError(f"The model '{name}' does not exist", param="model", code="model_not_found", status=404)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "local"}
