"""The HTTP side: routes, and one log line per request."""

import logging
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.responses import JSONResponse

from local.api_error import ApiError, answer_errors

from .chat import CHAT_MODEL, Chat
from .embedder import EMBEDDING_MODEL, Embedder
from .engine import Engine
from .wire import ChatRequest, EmbeddingRequest

log = logging.getLogger("local.model_server")


def create_app() -> FastAPI:
    """Load both models (a few seconds) and build the application around them."""
    app = FastAPI(openapi_url=None)
    answer_errors(app)
    chat = Chat(Engine())
    embedder = Embedder()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        entry = {"object": "model", "created": 0, "owned_by": "local"}
        return {"object": "list", "data": [{"id": name, **entry} for name in (CHAT_MODEL, EMBEDDING_MODEL)]}

    @app.post("/v1/chat/completions")
    def chat_completions(asked: ChatRequest) -> JSONResponse:
        return _answer(asked, CHAT_MODEL, chat.reply)

    @app.post("/v1/embeddings")
    def embeddings(asked: EmbeddingRequest) -> JSONResponse:
        return _answer(asked, EMBEDDING_MODEL, embedder.reply)

    return app


def _answer(asked: Any, model: str, reply: Callable[[Any], dict[str, Any]]) -> JSONResponse:
    """Answer a request, and log what it cost. Neither prompts nor answers are logged."""
    if asked.model != model:
        message = f"The model {asked.model!r} does not exist here; this path serves {model!r}."
        raise ApiError(message, param="model", code="model_not_found", status=404)
    start = time.perf_counter()
    body = reply(asked)
    usage = body["usage"]
    tokens = f"in {usage['prompt_tokens']} out {usage.get('completion_tokens', 0)}"
    log.info("%s tokens %s, %.2f s, status 200", model, tokens, time.perf_counter() - start)
    return JSONResponse(body)
