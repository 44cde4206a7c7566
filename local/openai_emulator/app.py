"""The application: routes, and errors in OpenAI's shape."""

from dataclasses import replace
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from .answers import Answers
from .controls import Controls, Middleware, Outcome
from .errors import ApiError, parse
from .files import Files
from .jobs import Jobs, find_job
from .life import ENDED, as_openai
from .store import Store


def create_app(folder: Path, upstream: str, job_seconds: float, token: str | None = None) -> ASGIApp:
    """Build the application.

    :param folder: where files and jobs are kept.
    :param upstream: base URL of the server that answers questions.
    :param job_seconds: how long a job takes.
    :param token: the API key to ask for, if one is to be asked for.
    """
    store = Store(folder)
    controls = Controls()
    answers = Answers(store, upstream)
    jobs = Jobs(store, controls, job_seconds, answers.base_models)

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def all_jobs(_: Request) -> JSONResponse:
        now = jobs.now()
        return JSONResponse({"data": [as_openai(job, now) for job in store.jobs()]})

    async def change_job(request: Request) -> JSONResponse:
        job = find_job(store, request)
        change = await parse(Change, request)
        now = jobs.now()
        if change.error is not None:
            job = replace(job, error=change.error)
        job = replace(job, marks=(*job.marks, job.marked(now, change.status)))
        store.save_job(job)
        return JSONResponse(as_openai(job, now))

    routes = [
        Route("/health", health),
        Route("/emulator/jobs", all_jobs),
        Route("/emulator/jobs/{job}", change_job, methods=["POST"]),
        *controls.routes,
        *Files(store).routes,
        *jobs.routes,
        *answers.routes,
    ]
    app = Starlette(routes=routes, exception_handlers={ApiError: _refused, HTTPException: _no_route})
    return Middleware(app, controls, token)
