"""What an evaluation measured, and which earlier result is the accepted one."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException
from pydantic import BaseModel, ValidationError

from include.common.exclusive import names_in
from include.common.storage import name_on_storage, read_artifact, storage_path, write_artifact
from include.evaluation.agreement import Agreement
from include.evaluation.statistics import Interval, wilson

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

FOLDER = "evaluation"


class Trial(BaseModel):
    """One answer to a case: `metrics` from 0 to 1, or the class of the error where there is no answer to score.

    :param cost_usd: None if the price is unknown.
    """

    output: Any = None
    metrics: dict[str, float] = {}
    error: str = ""
    seconds: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0

    @property
    def passed(self) -> bool:
        """Whether every metric is 1."""
        return not self.error and bool(self.metrics) and all(value >= 1 for value in self.metrics.values())


class Result(BaseModel):
    """All trials of a subject's cases, by the key of the case.

    :param version: the fingerprint of prompt, output schema and tools.
    :param answers: how many answers the model and the judge gave.
    :param reused: how many of these another run paid.
    :param paid_usd: what the others cost; None if the price of one is unknown.
    :param agreement: the judge's agreement with people, if a judge was asked.
    """

    subject: str
    version: str
    model: str
    run_id: str
    at: datetime
    trials: dict[str, list[Trial]]
    answers: int = 0
    reused: int = 0
    paid_usd: float | None = 0.0
    agreement: Agreement | None = None

    @property
    def all_trials(self) -> list[Trial]:
        """Every trial of every case."""
        return [trial for trials in self.trials.values() for trial in trials]

    @property
    def passed(self) -> Interval:
        """The share of passed cases; a case that is passed in half of its trials counts half."""
        return wilson(_mean([passed_share(trials) for trials in self.trials.values()]), len(self.trials))

    @property
    def metrics(self) -> dict[str, float]:
        """The mean of each metric over all trials; one without an answer counts as 0."""
        names = dict.fromkeys(name for trial in self.all_trials for name in trial.metrics)
        return {name: _mean([trial.metrics.get(name, 0.0) for trial in self.all_trials]) for name in names}

    @property
    def failures(self) -> Counter[str]:
        """How many trials were not passed, by the class of the error or by what was wrong."""
        found: Counter[str] = Counter()
        for trial in self.all_trials:
            if not trial.passed:
                found[trial.error or f"wrong: {', '.join(n for n, value in trial.metrics.items() if value < 1)}"] += 1
        return found

    @property
    def cost_usd(self) -> float | None:
        """US dollars; None if the price of one answer is unknown."""
        costs = [trial.cost_usd for trial in self.all_trials]
        return None if None in costs else sum(cost for cost in costs if cost)

    @property
    def seconds(self) -> float:
        """The median time to an answer."""
        return median(trial.seconds for trial in self.all_trials)

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return sum(trial.input_tokens + trial.output_tokens for trial in self.all_trials)


def passed_share(trials: list[Trial]) -> float:
    """Return the share of trials that are passed."""
    return _mean([trial.passed for trial in trials])


def result_path(run_id: str, subject: str) -> ObjectStoragePath:
    """Return where a run keeps its result of a subject."""
    return storage_path(FOLDER, "results", name_on_storage(run_id), f"{name_on_storage(subject)}.json")


def read_result(path: ObjectStoragePath) -> Result:
    """Read a result.

    :raises AirflowFailException: it cannot be read.
    """
    try:
        return Result.model_validate_json(read_artifact(path))
    except ValidationError:
        raise AirflowFailException(f"{path} is not a result of this version. Delete it, and evaluate again.") from None


def write_result(path: ObjectStoragePath, result: Result) -> None:
    """Write a result, whole or not at all."""
    write_artifact(path, result.model_dump_json())


def accepted_path(subject: str, at: datetime | None = None) -> ObjectStoragePath:
    """Return where accepted results of a subject are: the file of one moment, or the folder of all."""
    folder = storage_path(FOLDER, "accepted", name_on_storage(subject))
    return folder / f"{at.astimezone(UTC):%Y%m%dT%H%M%S%f}.json" if at else folder


def read_accepted(subject: str, before: datetime | None = None) -> Result | None:
    """Read the result that was accepted last; None if none was. To go back to an earlier one, delete the newer files.

    :param before: only those that were accepted before this moment count.
    :raises AirflowFailException: it cannot be read.
    """
    folder = accepted_path(subject)
    limit = accepted_path(subject, before).name if before else "~"
    files = sorted(name for name in names_in(folder) if name.endswith(".json") and name < limit)
    return read_result(folder / files[-1]) if files else None


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values) if values else 0.0
