"""The life of a job: what it is at any time follows from what was written down when it was created or changed."""

import random
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import zip_longest
from typing import Any, NamedTuple

# Where in a job's time each status starts, as a share of the whole.
STARTS = {"validating_files": 0.0, "queued": 0.1, "running": 0.2, "succeeded": 1.0}
# A bad file is found just before the files would count as validated.
INVALID_AT = 0.09
ENDED = ("succeeded", "failed", "cancelled")
MOST_STEPS_SHOWN = 30


class Mark(NamedTuple):
    """A change of a job's course.

    From `wall` (Unix time) on the job is `age` seconds into its life. With a status it has that one and its life
    stands still; without, its life goes on and the status follows from it.
    """

    wall: float
    age: float
    status: str | None


class Step(NamedTuple):
    """Losses after a step, which are made up."""

    number: int
    train_loss: float
    valid_loss: float | None


@dataclass(frozen=True)
class Job:
    """A job as it was created (`marks`, `error` and `model_deleted` may change later).

    :param seconds: how long its life is.
    :param ending: the status that it has at the end, unless something comes between.
    :param error: why it fails, if it does.
    """

    id: str
    created_at: float
    seconds: float
    model: str
    suffix: str
    training_file: str
    validation_file: str | None
    result_file: str
    method: str
    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    seed: int
    metadata: dict[str, str] | None
    examples: int
    tokens: int
    ending: str
    error: dict[str, Any] | None
    marks: tuple[Mark, ...]
    model_deleted: bool = False

    @property
    def tuned_model(self) -> str:
        """The name of the model that it makes."""
        return f"ft:{self.model}:emulator:{self.suffix}:{self.id.removeprefix('ftjob-')[:8]}"

    @property
    def hyperparameters(self) -> dict[str, float]:
        """As OpenAI names them."""
        return {
            "n_epochs": self.n_epochs,
            "batch_size": self.batch_size,
            "learning_rate_multiplier": self.learning_rate_multiplier,
        }

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The steps that are told of, the last one included."""
        return _steps(self.total_steps, self.seed, self.validation_file is not None)

    @property
    def total_steps(self) -> int:
        """How many steps there would be."""
        return max(1, -(-self.examples * self.n_epochs // self.batch_size))

    @property
    def _end(self) -> float:
        invalid = self.ending == "failed" and str((self.error or {}).get("code")).startswith("invalid_")
        return self.seconds * (INVALID_AT if invalid else 1)

    def age(self, now: float) -> float:
        """How many seconds of its life have passed."""
        last = self.marks[-1]
        return last.age if last.status is not None else min(self._end, last.age + now - last.wall)

    def status(self, now: float) -> str:
        """One of OpenAI's statuses, or what the job is held in."""
        held = self.marks[-1].status
        if held is not None:
            return held
        age = self.age(now)
        if age >= self._end:
            return self.ending
        return [status for status, start in STARTS.items() if age >= start * self.seconds][-1]

    def reached(self, age: float) -> float:
        """Unix time at which it was (or will be) this old."""
        for mark, following in zip_longest(self.marks, self.marks[1:]):
            if age <= mark.age:
                return mark.wall
            at = mark.wall + age - mark.age
            if mark.status is None and (following is None or at <= following.wall):
                return at
        return self.marks[-1].wall

    def ended_at(self, now: float) -> float | None:
        """Unix time of its end, if it has ended."""
        if self.status(now) not in ENDED:
            return None
        last = self.marks[-1]
        return last.wall if last.status is not None else self.reached(self._end)

    def has_model(self, now: float) -> bool:
        """Whether the model that it makes is there."""
        return self.status(now) == "succeeded" and not self.model_deleted

    def marked(self, now: float, status: str | None) -> Mark:
        """The mark that gives it this status now."""
        age = self.age(now)
        if status in STARTS:
            age = max(age, STARTS[status] * self.seconds)
        return Mark(now, age, status)

    def record(self) -> dict[str, Any]:
        """For the database; `Job.of` is the way back."""
        return asdict(self)

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Job":
        """Of a record."""
        return cls(**record | {"marks": tuple(Mark(*mark) for mark in record["marks"])})


def as_openai(job: Job, now: float) -> dict[str, Any]:
    """The job as OpenAI's clients read it."""
    status = job.status(now)
    ended = job.ended_at(now)
    runs = status == "running" and job.marks[-1].status is None
    made = status == "succeeded"
    return {
        "object": "fine_tuning.job",
        "id": job.id,
        "created_at": int(job.created_at),
        "finished_at": None if ended is None else int(ended),
        "estimated_finish": int(job.reached(job.seconds)) if runs else None,
        "status": status,
        "error": job.error if status == "failed" else None,
        "model": job.model,
        "fine_tuned_model": job.tuned_model if made else None,
        "trained_tokens": job.tokens * job.n_epochs if made else None,
        "result_files": [job.result_file] if made else [],
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "hyperparameters": job.hyperparameters,
        "method": {"type": job.method, job.method: {"hyperparameters": job.hyperparameters}},
        "seed": job.seed,
        "metadata": job.metadata,
        "integrations": [],
        "organization_id": "org-emulator",
        "user_provided_suffix": job.suffix or None,
    }


@lru_cache(maxsize=2048)
def _steps(total: int, seed: int, validated: bool) -> tuple[Step, ...]:
    stride = next(s for s in _strides() if total <= s * MOST_STEPS_SHOWN)
    numbers = sorted({*range(stride, total + 1, stride), total})
    chance = random.Random(seed)  # noqa: S311
    steps = []
    for number in numbers:
        loss = 0.5 + 2 * 0.02 ** (number / total)
        train, valid = (loss * chance.uniform(0.93, 1.07), loss * chance.uniform(1.0, 1.12))
        steps.append(Step(number, round(train, 4), round(valid, 4) if validated else None))
    return tuple(steps)


def _strides() -> Any:
    size = 1
    while True:
        yield from (size, 2 * size, 5 * size)
        size *= 10
