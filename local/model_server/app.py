"""The HTTP side: routes, errors in OpenAI's shape, one log line per request."""

import logging
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from local.api_error import ApiError

from .chat import CHAT_MODEL, Chat
from .embedder import EMBEDDING_MODEL, Embedder
from .engine import Engine
from .wire import ChatRequest, EmbeddingRequest, parse

LARGEST_BODY = 4 * 1024 * 1024
log = logging.getLogger("local.model_server")


def create_app() -> FastAPI:
    """Load both models (about a second) and build the application around them."""
    app = FastAPI(title="Local model server", openapi_url=None)
    chat = Chat(Engine())
    embedder = Embedder()

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), status_code=error.status)

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> JSONResponse:
        problem = ApiError(f"{request.method} {request.url.path}: {error.detail}", status=error.status_code)
        return JSONResponse(problem.body(), status_code=error.status_code)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(name) for name in (CHAT_MODEL, EMBEDDING_MODEL)]}

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> JSONResponse:
        body = await _body(request)
        return await _answer(CHAT_MODEL, lambda: chat.reply(_for_model(parse(ChatRequest, body), CHAT_MODEL)))

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> JSONResponse:
        body = await _body(request)
        return await _answer(
            EMBEDDING_MODEL,
            lambda: embedder.reply(_for_model(parse(EmbeddingRequest, body), EMBEDDING_MODEL)),
        )

    return app


async def _body(request: Request) -> bytes:
    too_large = ApiError(f"The request body is larger than {LARGEST_BODY} bytes.", code="too_large", status=413)
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > LARGEST_BODY:
            raise too_large
    return bytes(received)


def _for_model(request: Any, served: str) -> Any:
    if request.model != served:
        message = f"The model {request.model!r} does not exist here; this path serves {served!r}."
        raise ApiError(message, param="model", code="model_not_found", status=404)
    return request


async def _answer(model: str, work: Callable[[], dict[str, Any]]) -> JSONResponse:
    """Do the work in a thread and log what it cost. Neither prompts nor answers are logged."""
    start = time.perf_counter()
    status, usage = 500, {}
    try:
        body = await run_in_threadpool(work)
        status, usage = 200, body["usage"]
        return JSONResponse(body)
    except ApiError as error:
        status = error.status
        raise
    except Exception:
        log.exception("request failed")
        failure = ApiError("The server failed to answer; its log has the reason.", status=500)
        return JSONResponse(failure.body(), status_code=500)
    finally:
        log.info(
            "%s tokens in %d out %d, %.2f s, status %d",
            model,
            usage.get("prompt_tokens", 0),
            usage.get("completion_tokens", 0),
            time.perf_counter() - start,
            status,
        )


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "local"}
