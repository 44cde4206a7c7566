"""The application: files, models and answers, and the routes of jobs, batches and the controls for tests."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, Form, Request, UploadFile
from starlette.responses import FileResponse, Response
from starlette.types import ASGIApp

from local.api_error import ApiError, answer_errors

from .batches import Batches
from .controls import Controls, Fault
from .jobs import Jobs
from .models import Models, no_model
from .store import End, Outcome, Store, page

FAKE = "a fake of OpenAI's fine-tuning and batches, which trains nothing"
Kind = Literal["jobs", "batches"]

log = logging.getLogger(__name__)


def create_app(
    folder: Path,
    upstream: str | None,
    job_seconds: float = 6.0,
    token: str | None = None,
    clock: Callable[[], float] = time.time,
) -> ASGIApp:
    """Build the application.

    :param folder: where its state is stored.
    :param upstream: base URL of the OpenAI-compatible server that has the models; without one there is one base model
        and no question is answered.
    :param job_seconds: how long a job takes.
    :param token: the only API key that is accepted; None accepts any.
    :param clock: returns seconds since the epoch, for the statuses of jobs.
    """
    log.info("this is %s", FAKE)
    store = Store(folder)
    models = Models(store, upstream)
    jobs = Jobs(store, job_seconds, clock, models.bases)
    batches = Batches(store, models.answer)
    api = FastAPI(openapi_url=None)
    answer_errors(api)
    controls = Controls(token)
    api.middleware("http")(controls)
    _add_files(api, store)
    _add_models(api, models)
    api.include_router(jobs.router)
    api.include_router(batches.router)
    _add_controls(api, controls, {"jobs": jobs, "batches": batches})
    return api


def _add_files(api: FastAPI, store: Store) -> None:
    def known(file: str) -> dict[str, Any]:
        if file not in store.files:
            raise ApiError(f"No such File object: {file}", param="id", status=404)
        return store.files[file]

    @api.post("/v1/files")
    async def create(file: UploadFile, purpose: Annotated[str, Form()]) -> dict[str, Any]:
        return store.add_file(file.filename or "", purpose, await file.read())

    @api.get("/v1/files")
    async def listing(purpose: str | None = None, after: str | None = None, limit: int = 10_000) -> dict[str, Any]:
        return page([f for f in reversed(store.files.values()) if purpose in (None, f["purpose"])], after, limit)

    @api.delete("/v1/files/{file}")
    async def delete(file: str) -> dict[str, Any]:
        del store.files[known(file)["id"]]
        store.save()
        return {"id": file, "object": "file", "deleted": True}

    @api.get("/v1/files/{file}/content")
    async def content(file: str) -> FileResponse:
        return FileResponse(store.content(known(file)["id"]), media_type="application/octet-stream")


def _add_models(api: FastAPI, models: Models) -> None:
    @api.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "fake": FAKE}

    @api.get("/v1/models")
    async def listing() -> dict[str, Any]:
        return {"object": "list", "data": await models.all()}

    @api.get("/v1/models/{name:path}")
    async def retrieve(name: str) -> dict[str, Any]:
        for model in await models.all():
            if model["id"] == name:
                return model
        raise no_model(name)

    @api.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await models.answer(await request.body())


def _add_controls(api: FastAPI, controls: Controls, kinds: dict[Kind, Jobs | Batches]) -> None:
    @api.get("/emulator/requests")
    async def requests() -> list[dict[str, str]]:
        return list(controls.requests)

    @api.post("/emulator/faults")
    async def add_fault(fault: Fault) -> None:
        controls.faults.append(fault)

    @api.get("/emulator/{kind}")
    async def all_of(kind: Kind) -> list[dict[str, Any]]:
        return kinds[kind].all()

    @api.post("/emulator/{kind}")
    async def add_outcome(kind: Kind, outcome: Outcome) -> None:
        kinds[kind].outcomes.append(outcome)

    @api.post("/emulator/{kind}/{name}")
    async def end(kind: Kind, name: str, status: Annotated[End, Body(embed=True)]) -> None:
        kinds[kind].end(name, status)
