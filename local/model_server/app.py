"""The HTTP side: routes, errors in OpenAI's shape, one log line per request."""

import logging
import time
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
    """Load both models (a few seconds) and build the application around them."""
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
        entry = {"object": "model", "created": 0, "owned_by": "local"}
        return {"object": "list", "data": [{"id": name, **entry} for name in (CHAT_MODEL, EMBEDDING_MODEL)]}

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> JSONResponse:
        return await _answer(request, ChatRequest, CHAT_MODEL, chat)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> JSONResponse:
        return await _answer(request, EmbeddingRequest, EMBEDDING_MODEL, embedder)

    return app


async def _answer(
    request: Request, kind: type[ChatRequest | EmbeddingRequest], model: str, answerer: Any
) -> JSONResponse:
    """Answer in a thread and log what it cost. Neither prompts nor answers are logged."""
    start = time.perf_counter()
    status, usage = 500, {}
    try:
        asked = parse(kind, await _body(request))
        if asked.model != model:
            message = f"The model {asked.model!r} does not exist here; this path serves {model!r}."
            raise ApiError(message, param="model", code="model_not_found", status=404)
        body = await run_in_threadpool(answerer.reply, asked)
        status, usage = 200, body["usage"]
        return JSONResponse(body)
    except ApiError as error:
        status = error.status
        raise
    except Exception:
        log.exception("request failed")
        raise ApiError("The server failed to answer; its log has the reason.", status=500) from None
    finally:
        tokens = f"in {usage.get('prompt_tokens', 0)} out {usage.get('completion_tokens', 0)}"
        log.info("%s tokens %s, %.2f s, status %d", model, tokens, time.perf_counter() - start, status)


async def _body(request: Request) -> bytes:
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > LARGEST_BODY:
            raise ApiError(f"The request body is larger than {LARGEST_BODY} bytes.", code="too_large", status=413)
    return bytes(received)
