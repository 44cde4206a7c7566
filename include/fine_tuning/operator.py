"""The operator that fine-tunes a model once, for services with OpenAI's fine-tuning API."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from include.fine_tuning.api import OpenAIFineTuneTrigger, training_cost
from include.jobs.job import Job
from include.jobs.operator import PaidJobOperator
from include.jobs.service import openai_service

try:
    from include.fine_tuning.spending import tuning_spending
except ImportError:  # a copied pattern may lack it: then there are neither budgets nor a ledger
    tuning_spending = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context

LONGEST_SUFFIX = 64


class OpenAIFineTuneOperator(PaidJobOperator):
    """Train a model on uploaded examples. The output is the id of the fine-tuned model.

    Further XComs: `job_id`, `job_url`, `trained_tokens`, `seconds` (from the job's creation to its end), `cost_usd`
    (None without a price in the connection) and `result_files` (ids of the provider's files).
    For what holds for the job itself (one per task instance, the waits, kills and time-outs), see `PaidJobOperator`.

    :param fine_tuning_file_id: id of the uploaded training file (templated).
    :param validation_file_id: id of the uploaded validation file, if there is one (templated).
    :param model: the base model (templated); None for the connection's.
    :param suffix: becomes part of the name of the fine-tuned model (templated). Everything but letters, digits and
        dashes becomes a dash, and it is cut at 64 characters.
    :param method: the provider's `method`, as `{"type": "supervised", "supervised": {"hyperparameters": {...}}}`.
    :param hyperparameters: the same for services without `method`; give one of the two.
    :param seed: for reproducible training.
    :param estimated_usd: the estimated cost of the training, if known (templated), which the connection's budgets must
        have left.
    :raises AirflowFailException: the job failed, was cancelled or took too long, or the provider refuses it.
    :raises AirflowException: the provider could not be reached; a retry takes the job up again.
    """

    template_fields = ("fine_tuning_file_id", "validation_file_id", "model", "suffix", "estimated_usd")
    trigger_type = OpenAIFineTuneTrigger
    openai_page = "finetune"
    service_path = "fine_tuning/jobs"
    spending = tuning_spending

    def __init__(
        self,
        *,
        fine_tuning_file_id: str,
        validation_file_id: str | None = None,
        model: str | None = None,
        suffix: str | None = None,
        method: dict[str, Any] | None = None,
        hyperparameters: dict[str, Any] | None = None,
        seed: int | None = None,
        estimated_usd: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if method and hyperparameters:
            raise ValueError("Give method or hyperparameters, not both: hyperparameters is the older form of method")
        self.fine_tuning_file_id = fine_tuning_file_id
        self.validation_file_id = validation_file_id
        self.model = model
        self.suffix = suffix
        self.method = method
        self.hyperparameters = hyperparameters
        self.seed = seed
        self.estimated_usd = estimated_usd

    def request(self) -> dict[str, Any]:
        if not self.fine_tuning_file_id or not isinstance(self.fine_tuning_file_id, str):
            raise AirflowFailException(f"fine_tuning_file_id is not the id of a file: {self.fine_tuning_file_id!r}.")
        given = {
            "model": self.model or openai_service(self.conn_id).base_model,
            "training_file": self.fine_tuning_file_id,
            "validation_file": self.validation_file_id,
            "suffix": valid_suffix(self.suffix or ""),
            "method": self.method,
            "hyperparameters": self.hyperparameters,
            "seed": self.seed,
        }
        return {name: value for name, value in given.items() if value not in (None, "")}

    def result(self, context: Context, job: Job) -> str:
        tokens = job.detail["trained_tokens"]
        values = {
            "trained_tokens": tokens,
            "seconds": job.detail["seconds"],
            "cost_usd": training_cost(openai_service(self.conn_id), tokens or 0),
            "result_files": job.detail["result_files"],
        }
        for key, value in values.items():
            context["ti"].xcom_push(key=key, value=value)
        if self.spending:
            self.spending.count_ended(self, context["ti"], job)
        model = job.detail["model"]
        if not model:
            raise AirflowFailException(
                f"Connection {self.conn_id!r}: job {job.id} succeeded, but the provider names no model."
            )
        self.log.info("Job %s made the model %s from %s tokens.", job.id, model, tokens)
        return str(model)


def valid_suffix(text: str) -> str:
    """Return the text as letters, digits and single dashes, at most 64 of them."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text)[:LONGEST_SUFFIX].strip("-")
