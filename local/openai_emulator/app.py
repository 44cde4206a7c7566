"""The application: all routes behind the one door."""

from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from local.api_error import ApiError

from .batches import Batches
from .controls import Controls
from .door import Door
from .files import Files
from .jobs import Jobs
from .models import Models
from .store import Store
from .upstream import Upstream

EMBEDDING_MODEL = "wordllama-256"
JOB_SECONDS = 6.0


def create_app(
    folder: Path, upstream: str | None, job_seconds: float, token: str | None, embedding_model: str
) -> ASGIApp:
    """Build the application on what is in the folder."""
    store = Store(folder)
    controls = Controls(store)
    models = Models(store, Upstream(upstream), embedding_model)
    jobs = Jobs(store, controls, job_seconds, models.bases)
    batches = Batches(store, models.answer)
    api = [*Files(store).routes, *jobs.routes, *batches.routes, *models.routes]
    routes = [Route("/health", _health), *api, *controls.routes]
    handlers = {ApiError: _refused, HTTPException: _no_such_route, Exception: _failed}
    return Door(Starlette(routes=routes, exception_handlers=handlers), controls, token)


async def _health(_: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)  # noqa: S101
    return JSONResponse(error.body(), error.status)


async def _no_such_route(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101
    problem = ApiError(f"{request.method} {request.url.path}: {error.detail}", status=error.status_code)
    return JSONResponse(problem.body(), problem.status)


async def _failed(_: Request, error: Exception) -> JSONResponse:
    problem = ApiError("The emulator failed to answer; its log has the reason.", status=500)
    return JSONResponse(problem.body(), problem.status)
