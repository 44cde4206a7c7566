"""The models of the server behind the emulator, and the tuned ones, which are shown examples first."""

import json
from typing import Any

import httpx
from starlette.responses import JSONResponse, Response

from local.api_error import ApiError

from .store import Store
from .training_file import with_examples

BASE_MODEL = "smollm2-135m-instruct"
_ANSWER_TIMEOUT_S = 300.0


class Models:
    """The models of the server behind the emulator, and the tuned ones."""

    def __init__(self, store: Store, upstream: str | None) -> None:
        self._store = store
        self._upstream = upstream and httpx.AsyncClient(base_url=upstream, timeout=_ANSWER_TIMEOUT_S, trust_env=False)

    async def bases(self) -> list[str]:
        """Return the models that can be tuned."""
        if not self._upstream:
            return [BASE_MODEL]
        return [model["id"] for model in json.loads((await self._ask("GET", "models")).content)["data"]]

    async def all(self) -> list[dict[str, Any]]:
        """Return every model, as the provider shows it."""
        return [{"id": name, "object": "model", "created": 0} for name in [*await self.bases(), *self._tuned()]]

    async def answer(self, raw: bytes) -> Response:
        """Answer the body of a chat request."""
        try:
            body = json.loads(raw)
            name = body["model"]
        except (ValueError, LookupError, TypeError):
            raise ApiError("The body must be a JSON object with a model.", param="model") from None
        if not str(name).startswith("ft:"):
            return _passed(await self._ask("POST", "chat/completions", raw))
        if name not in (tuned := self._tuned()):
            raise no_model(name)
        messages = body.get("messages")
        if not (isinstance(messages, list) and messages and all(isinstance(each, dict) for each in messages)):
            raise ApiError("There must be a list of messages.", param="messages")
        shown = with_examples(self._store.content(tuned[name]["training_file"]), messages)
        asked = json.dumps({**body, "model": tuned[name]["model"], "messages": shown}).encode()
        reply = await self._ask("POST", "chat/completions", asked)
        return JSONResponse({**reply.json(), "model": name}) if reply.status_code == 200 else _passed(reply)

    def _tuned(self) -> dict[str, dict[str, Any]]:
        """Return the job that made each tuned model, by the model's name."""
        jobs = (job.shown for job in self._store.jobs.values())
        return {job["fine_tuned_model"]: job for job in jobs if job["fine_tuned_model"]}

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> httpx.Response:
        if not self._upstream:
            raise ApiError("The emulator was started without a server of models.", code="no_upstream", status=503)
        try:
            return await self._upstream.request(
                method, path, content=body, headers={"content-type": "application/json"}
            )
        except httpx.TransportError as error:
            message = f"The server of models did not answer: {type(error).__name__}"
            raise ApiError(message, code="upstream_unreachable", status=503) from None


def _passed(reply: httpx.Response) -> Response:
    return Response(reply.content, reply.status_code, media_type=reply.headers.get("content-type"))


def no_model(name: str) -> ApiError:
    """Return the error for an unknown model."""
    return ApiError(f"The model `{name}` does not exist.", param="model", code="model_not_found", status=404)
