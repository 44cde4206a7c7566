"""What tests and demonstrations ask for beside the API, under `/emulator`."""

import re
import time
from collections import deque
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Scope

from local.api_error import ApiError

from .life import ENDED, Job, as_openai
from .reading import parse
from .store import Store

_MOST_REQUESTS = 100_000


class _Control(BaseModel):
    model_config = ConfigDict(extra="forbid")


class JobError(_Control):
    """Why a job fails."""

    code: str = "server_error"
    message: str = "This failure was asked for."
    param: str | None = None


class Outcome(_Control):
    """What becomes of a job."""

    status: Literal["succeeded", "failed", "cancelled"] | None = None
    error: JobError | None = None
    hold: str | None = None

    def applied(self, job: Job) -> Job:
        """The job that was just created, with this outcome."""
        ending = self.status or ("failed" if self.error else job.ending)
        if ending == "failed":
            error = job.error if job.error and not self.error else (self.error or JobError()).model_dump()
        else:
            error = None
        marks = (job.marked(job.created_at, self.hold),) if self.hold else job.marks
        return replace(job, ending=ending, error=error, marks=marks)


class NextOutcome(_Control):
    """The body of `POST /emulator/jobs`."""

    outcome: Outcome


class Change(_Control):
    """The body of `POST /emulator/jobs/{id}`."""

    status: str | None
    error: JobError | None = None


class Fault(_Control):
    """The body of `POST /emulator/faults`."""

    method: str | None = None
    path: str = "/"
    times: Annotated[int, Field(ge=1)] = 1
    status: Annotated[int, Field(ge=400, le=599)] | None = None
    code: str | None = None
    message: str = "This failure was asked for."
    retry_after: float | None = None
    drop: Literal["before", "after"] | None = None
    delay_before: float | None = None
    delay: float | None = None

    @model_validator(mode="after")
    def _one_of_four(self) -> Self:
        if sum(each is not None for each in (self.status, self.drop, self.delay_before, self.delay)) != 1:
            raise ValueError("there must be exactly one of status, drop, delay_before and delay")
        try:
            re.compile(self.path)
        except re.error as error:
            raise ValueError(f"path is no regular expression: {error}") from None
        return self

    def meets(self, scope: Scope) -> bool:
        """Whether it is meant for this request."""
        return self.method in (None, scope["method"]) and re.match(self.path, scope["path"]) is not None


class Controls:
    """The outcomes and faults to come, and the requests that came."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._outcomes: deque[Outcome] = deque()
        self._faults: list[Fault] = []
        self._requests: deque[dict[str, Any]] = deque(maxlen=_MOST_REQUESTS)
        self.routes = [
            Route("/emulator/jobs", self._add_outcome, methods=["POST"]),
            Route("/emulator/jobs", self._list_jobs),
            Route("/emulator/jobs/{job}", self._change_job, methods=["POST"]),
            Route("/emulator/faults", self._add_fault, methods=["POST"]),
            Route("/emulator/faults", self._clear_faults, methods=["DELETE"]),
            Route("/emulator/requests", self._list_requests),
        ]

    def next_outcome(self) -> Outcome:
        """What becomes of the job that is created now."""
        return self._outcomes.popleft() if self._outcomes else Outcome()

    def fault(self, scope: Scope) -> Fault | None:
        """The fault that this request meets."""
        for fault in self._faults:
            if fault.meets(scope):
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
                return fault
        return None

    def note(self, scope: Scope, status: int | None) -> None:
        """Remember a request."""
        self._requests.append({"method": scope["method"], "path": scope["path"], "status": status, "time": time.time()})

    async def _add_outcome(self, request: Request) -> JSONResponse:
        self._outcomes.append((await parse(NextOutcome, request)).outcome)
        return JSONResponse({"waiting": len(self._outcomes)})

    async def _list_jobs(self, request: Request) -> JSONResponse:
        now = time.time()
        return JSONResponse({"object": "list", "data": [as_openai(job, now) for job in self._store.jobs()]})

    async def _change_job(self, request: Request) -> JSONResponse:
        change = await parse(Change, request)
        job = self._store.job(request.path_params["job"])
        now = time.time()
        if job.status(now) in ENDED:
            raise ApiError(f"Job {job.id} has ended: it is {job.status(now)}.", param="status")
        if change.status == "failed":
            job = replace(job, error=(change.error or JobError()).model_dump())
        changed = replace(job, marks=(*job.marks, job.marked(now, change.status)))
        self._store.save_job(changed)
        return JSONResponse(as_openai(changed, now))

    async def _add_fault(self, request: Request) -> JSONResponse:
        self._faults.append(await parse(Fault, request))
        return JSONResponse({"waiting": len(self._faults)})

    async def _clear_faults(self, request: Request) -> JSONResponse:
        self._faults.clear()
        return JSONResponse({"waiting": 0})

    async def _list_requests(self, request: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": list(self._requests)})
