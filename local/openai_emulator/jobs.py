"""`/v1/fine_tuning/jobs`."""

import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, StringConstraints
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from include.fine_tuning.examples import CheckedFile, check_files
from local.api_error import ApiError

from .controls import Controls
from .events import job_events
from .files import as_page
from .life import ENDED, Job, Mark, as_openai
from .reading import Metadata, parse, query_int
from .store import RESULTS, File, Store, new_id

_MOST_LISTED = 1000
_PROBLEMS_NAMED = 5
_LEAST_SECONDS = 0.001
_AUTO = {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.0}


_Auto = BeforeValidator(lambda value: None if value == "auto" else value)


class Hyperparameters(BaseModel):
    """How to learn; "auto" and null leave it to the emulator."""

    n_epochs: Annotated[int | None, _Auto, Field(ge=1, le=50)] = None
    batch_size: Annotated[int | None, _Auto, Field(ge=1, le=256)] = None
    learning_rate_multiplier: Annotated[float | None, _Auto, Field(gt=0)] = None


class Supervised(BaseModel):
    """The settings of the one method that there is."""

    hyperparameters: Hyperparameters | None = None


class Method(BaseModel):
    """How to learn; others than "supervised" are refused."""

    type: Literal["supervised"]
    supervised: Supervised | None = None


class JobRequest(BaseModel):
    """What a client asks for. Fields that the emulator has no use for are ignored."""

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: Annotated[str, StringConstraints(max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: Metadata | None = None
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None

    def settled(self) -> dict[str, Any]:
        """The hyperparameters, with a number for each "auto"; those of `method` come first."""
        given = self.method and self.method.supervised and self.method.supervised.hyperparameters
        wanted = (given or self.hyperparameters or Hyperparameters()).model_dump()
        return {name: _AUTO[name] if value is None else value for name, value in wanted.items()}


class Jobs:
    """The jobs of the emulator.

    :param seconds: how long a job takes.
    :param base_models: names the models that can be tuned.
    """

    def __init__(self, store: Store, controls: Controls, seconds: float, base_models: Callable[[], list[str]]) -> None:
        self._store = store
        self._controls = controls
        self._seconds = seconds
        self._base_models = base_models
        path = "/v1/fine_tuning/jobs"
        self.routes = [
            Route(path, self.create, methods=["POST"]),
            Route(path, self.listing),
            Route(path + "/{job}", self.retrieve),
            Route(path + "/{job}/events", self.events),
            Route(path + "/{job}/checkpoints", self.checkpoints),
            Route(path + "/{job}/cancel", self.cancel, methods=["POST"]),
            Route(path + "/{job}/pause", self.pause, methods=["POST"]),
            Route(path + "/{job}/resume", self.resume, methods=["POST"]),
        ]

    async def create(self, request: Request) -> JSONResponse:
        """Check what is asked for and start a job, which is kept when the answer goes out."""
        wanted = await parse(JobRequest, request)
        if wanted.model not in await run_in_threadpool(self._base_models):
            message = f"The model `{wanted.model}` does not exist or can't be fine-tuned."
            raise ApiError(message, param="model", code="model_not_found", status=404)
        files = [self._file(wanted, "training_file")]
        if wanted.validation_file:
            files.append(self._file(wanted, "validation_file"))
        checked = await run_in_threadpool(self._check, files)
        now = time.time()
        problem = _problem(checked)
        job = Job(
            id=new_id("ftjob"),
            created_at=now,
            seconds=max(self._seconds, _LEAST_SECONDS),
            model=wanted.model,
            suffix=wanted.suffix or "",
            training_file=wanted.training_file,
            validation_file=wanted.validation_file or None,
            result_file=new_id("file"),
            method="supervised",
            **wanted.settled(),
            seed=secrets.randbelow(2**31) if wanted.seed is None else wanted.seed,
            metadata=wanted.metadata,
            examples=checked[0].examples,
            tokens=checked[0].tokens,
            ending="failed" if problem else "succeeded",
            error=problem,
            marks=(Mark(now, 0.0, None),),
        )
        job = self._controls.next_outcome().applied(job)
        self._store.add_job(job, File(job.result_file, "step_metrics.csv", RESULTS, 0, int(now), job.id))
        return JSONResponse(as_openai(job, now))

    async def listing(self, request: Request) -> JSONResponse:
        """A page of jobs, the newest first."""
        query = request.query_params
        limit = query_int(request, "limit", 20, _MOST_LISTED)
        wanted = {
            name[len("metadata[") : -1]: value
            for name, value in query.multi_items()
            if name.startswith("metadata[") and name.endswith("]")
        }
        found = self._store.jobs(query.get("after"), wanted, query.get("metadata") == "null", limit + 1)
        now = time.time()
        return JSONResponse(as_page([as_openai(job, now) for job in found], limit))

    async def retrieve(self, request: Request) -> JSONResponse:
        """A job as it is now."""
        return self._answer(self._job(request))

    async def events(self, request: Request) -> JSONResponse:
        """A page of what has happened to a job, the newest first."""
        events = job_events(self._job(request), time.time())
        limit = query_int(request, "limit", 20, _MOST_LISTED)
        after = request.query_params.get("after")
        if after is not None:
            ids = [event["id"] for event in events]
            if after not in ids:
                raise ApiError(f"No such event: {after}", param="after")
            events = events[ids.index(after) + 1 :]
        return JSONResponse(as_page(events[: limit + 1], limit))

    async def checkpoints(self, request: Request) -> JSONResponse:
        """None: no weights exist."""
        self._job(request)
        return JSONResponse(as_page([], 1))

    async def cancel(self, request: Request) -> JSONResponse:
        """End a job."""
        return self._change(request, "cancel", "cancelled")

    async def pause(self, request: Request) -> JSONResponse:
        """Hold a job that is running."""
        return self._change(request, "pause", "paused", only="running")

    async def resume(self, request: Request) -> JSONResponse:
        """Let a paused job go on."""
        return self._change(request, "resume", None, only="paused")

    def _change(self, request: Request, verb: str, status: str | None, only: str | None = None) -> JSONResponse:
        job = self._job(request)
        now = time.time()
        before = job.status(now)
        if before in ENDED or (only and before != only):
            raise ApiError(f"Job {job.id} is {before}: it can't {verb}.", code=f"cannot_{verb}")
        changed = replace(job, marks=(*job.marks, job.marked(now, status)))
        self._store.save_job(changed)
        return self._answer(changed)

    def _answer(self, job: Job) -> JSONResponse:
        return JSONResponse(as_openai(job, time.time()))

    def _job(self, request: Request) -> Job:
        return self._store.job(request.path_params["job"])

    def _file(self, wanted: JobRequest, param: str) -> File:
        name = getattr(wanted, param)
        file = self._store.file(name)
        if file is None:
            raise ApiError(f"invalid {param}: {name}", param=param, code="invalid_file")
        if file.purpose != "fine-tune":
            raise ApiError(f"{param}: the purpose of {name} is {file.purpose}, not fine-tune", param=param)
        return file

    def _check(self, files: list[File]) -> list[CheckedFile]:
        training, *validation = [(file.name, self._store.content(file.id).open("rb")) for file in files]
        try:
            return check_files(training, *validation)
        finally:
            for _, stream in (training, *validation):
                stream.close()


def _problem(checked: list[CheckedFile]) -> dict[str, Any] | None:
    """Why a job with these files fails: the first bad one and its first bad lines."""
    for kind, file in zip(("training", "validation"), checked, strict=False):
        if file.problem_count:
            named = "; ".join(str(problem) for problem in file.problems[:_PROBLEMS_NAMED])
            more = file.problem_count - _PROBLEMS_NAMED
            message = f"The {kind} file is invalid. {named}" + (f"; and {more} more" if more > 0 else "")
            return {"code": f"invalid_{kind}_file", "message": message, "param": f"{kind}_file"}
    return None
