"""`/v1/fine_tuning/jobs`: jobs that go through OpenAI's statuses by the clock, and train nothing."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, AliasPath, BaseModel, Field

from local.api_error import ApiError

from .collection import UNNAMED_ERROR, Collection
from .store import End, Kept, Metadata, Store, new_id, page
from .training_file import LEAST_EXAMPLES, count_tokens, problems

# For each status the next one, the share of a job's time at which that begins, and its event's message.
_LIFE = {
    "validating_files": ("queued", 0.1, "Files validated, moving job to queued state"),
    "queued": ("running", 0.2, "Fine-tuning job started"),
    "running": ("", 1.0, ""),
}
_AUTO_EPOCHS = 3
_METHOD_EPOCHS = AliasPath("method", "supervised", "hyperparameters", "n_epochs")


class JobRequest(BaseModel):
    """What a client asks for. Fields that the emulator does not need are ignored."""

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: Annotated[str, Field(max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: Metadata | None = None
    method: Literal["supervised"] = Field("supervised", validation_alias=AliasPath("method", "type"))
    epochs: Annotated[int, Field(ge=1, le=50)] | Literal["auto"] = Field(
        "auto", validation_alias=AliasChoices(_METHOD_EPOCHS, AliasPath("hyperparameters", "n_epochs"))
    )


class Jobs(Collection):
    """The jobs of the emulator.

    :param seconds: how long a job takes.
    :param base_models: returns the models that can be tuned.
    """

    def __init__(
        self, store: Store, seconds: float, clock: Callable[[], float], base_models: Callable[[], Awaitable[list[str]]]
    ) -> None:
        super().__init__("/v1/fine_tuning/jobs", store, store.jobs)
        self._seconds = seconds
        self._clock = clock
        self._base_models = base_models
        self.router.add_api_route("", self.create, methods=["POST"])
        self.router.add_api_route("/{name}/events", self.events)

    async def create(self, wanted: JobRequest) -> dict[str, Any]:
        """Start a job, which is stored before the answer goes out."""
        if wanted.model not in await self._base_models():
            message = f"The model `{wanted.model}` does not exist or cannot be fine-tuned."
            raise ApiError(message, param="model", code="model_not_found", status=404)
        for param in ("training_file", "validation_file"):
            if file := getattr(wanted, param):
                self.store.input_file(file, "fine-tune", param)
        now = self._clock()
        shown: dict[str, Any] = {
            "id": new_id("ftjob-"),
            "object": "fine_tuning.job",
            "created_at": int(now),
            "status": "validating_files",
            "model": wanted.model,
            **dict.fromkeys(("finished_at", "error", "fine_tuned_model", "trained_tokens")),
            "result_files": [],
            "training_file": wanted.training_file,
            "validation_file": wanted.validation_file,
            "hyperparameters": {"n_epochs": _AUTO_EPOCHS if wanted.epochs == "auto" else wanted.epochs},
            "seed": secrets.randbelow(2**31) if wanted.seed is None else wanted.seed,
            "metadata": wanted.metadata,
            "organization_id": "org-emulator",
            "user_provided_suffix": wanted.suffix,
        }
        job = self.add(shown, now)
        self._say(job, f"Created fine-tuning job: {shown['id']}")
        self._say(job, f"Validating training file: {wanted.training_file}")
        return shown

    async def events(self, name: str, after: str | None = None, limit: int = 20) -> dict[str, Any]:
        """Return a page of a job's events, the newest first."""
        return page(self.get(name).events[::-1], after, limit)

    def bring_up_to_date(self) -> None:
        """Move each job that is not held through the statuses that are due."""
        for job in self.kept.values():
            while not job.outcome.hold and (step := _LIFE.get(job.shown["status"])):
                status, share, message = step
                if self._clock() < job.began + share * self._seconds:
                    break
                if status == "queued" and (error := self._bad_file(job)):
                    job.outcome.error = error
                    self.finish(job, "failed")
                elif status:
                    job.shown["status"] = status
                    self._say(job, message)
                else:
                    self.finish(job, job.outcome.status or "succeeded")

    def finish(self, job: Kept, status: End) -> None:
        """End a job, and make its model if it succeeded."""
        shown = job.shown
        if status == "succeeded":
            # A table of losses with a header only: no step was taken.
            results = self.store.add_file("step_metrics.csv", "fine-tune-results", b"step,train_loss,valid_loss\n")
            suffix, mark = shown["user_provided_suffix"] or "", shown["id"].removeprefix("ftjob-")[:8]
            tokens = count_tokens(self.store.content(shown["training_file"]))
            shown["fine_tuned_model"] = f"ft:{shown['model']}:emulator:{suffix}:{mark}"
            shown["trained_tokens"] = tokens * shown["hyperparameters"]["n_epochs"]
            shown["result_files"] = [results["id"]]
            self._say(job, f"New fine-tuned model created: {shown['fine_tuned_model']}")
            self._say(job, "The job has successfully completed")
        elif status == "failed":
            shown["error"] = job.outcome.error or UNNAMED_ERROR
            self._say(job, f"The job failed: {shown['error']['message']}", "error")
        else:
            self._say(job, "The job has been cancelled")
        shown |= {"status": status, "finished_at": int(self._clock())}
        job.outcome.hold = None
        self.store.save()

    def _bad_file(self, job: Kept) -> dict[str, Any] | None:
        for kind, least in (("training", LEAST_EXAMPLES), ("validation", 1)):
            file = job.shown[f"{kind}_file"]
            if file and (found := problems(self.store.content(file), least)):
                message = f"The {kind} file is invalid: {'; '.join(found[:5])}"
                return {"code": f"invalid_{kind}_file", "message": message, "param": f"{kind}_file"}
        return None

    def _say(self, job: Kept, message: str, level: str = "info") -> None:
        event = {"object": "fine_tuning.job.event", "id": new_id("ftevent-"), "created_at": int(self._clock())}
        job.events.append({**event, "level": level, "message": message, "type": "message", "data": {}})
        self.store.save()
