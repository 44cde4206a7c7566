"""What fine-tuning costs: the jobs, and the calls that compare models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from include.common.fingerprint import fingerprint
from include.common.prices import tokens_cost
from include.fine_tuning.api import training_cost
from include.jobs.service import OpenAIService
from include.jobs.spending import JobSpending
from include.spend.budgets import Meter, read_budgets
from include.spend.ledger import Call, record
from include.spend.scores import record_score

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from openai.types.chat import ChatCompletion

    from include.fine_tuning.examples import Example
    from include.fine_tuning.operator import OpenAIFineTuneOperator
    from include.jobs.job import Job


class TuningSpending(JobSpending):
    """Count fine-tuning jobs."""

    price_form = '"training_usd_per_million_tokens": ...'

    def estimate(self, operator: OpenAIFineTuneOperator, service: OpenAIService) -> tuple[str, float | None]:
        is_priced = training_cost(service, 0) is not None
        return operator.request()["model"], float(operator.estimated_usd or 0) if is_priced else None

    def call(self, operator: OpenAIFineTuneOperator, service: OpenAIService, ti: Any, job: Job) -> Call:
        tokens = job.detail["trained_tokens"] or 0
        return Call(
            "tuning",
            service.conn_id,
            operator.request()["model"],
            input_tokens=tokens,
            seconds=job.detail["seconds"] or 0.0,
            cost_usd=training_cost(service, tokens),
            failed=job.has_no_result,
        )


tuning_spending = TuningSpending()


def check_call(service: OpenAIService, model: str) -> None:
    """Check that the connection's budgets, if it has any, have something left for a call of a chat model.

    :raises AirflowFailException: they have not, or the price is not known.
    :raises AirflowException: the storage cannot be read.
    """
    if budgets := read_budgets(service.conn_id, service.extra):
        cost = tokens_cost(service.conn_id, service.extra, model, 0, 0)
        Meter(service.conn_id, budgets, None, unpriced=model if cost is None else "").check()


def count_call(service: OpenAIService, model: str, completion: ChatCompletion, seconds: float) -> None:
    """Count a call of a chat model."""
    tokens = (completion.usage.prompt_tokens, completion.usage.completion_tokens) if completion.usage else (0, 0)
    cost = tokens_cost(service.conn_id, service.extra, model, *tokens)
    if cost and (budgets := read_budgets(service.conn_id, service.extra)):
        meter = Meter(service.conn_id, budgets, None)
        meter.add(cost, model)
        meter.save()
    record(
        Call(
            "chat",
            service.conn_id,
            model,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            seconds=seconds,
            cost_usd=cost,
        )
    )


def record_scores(examples: Sequence[Example], by_model: Mapping[str, Mapping[str, float]]) -> None:
    """Record each model's scores for the page GenAI."""
    subject, asked = "answers to the validation examples", fingerprint([example.question for example in examples])
    for model, scores in by_model.items():
        for metric, value in scores.items():
            record_score(subject, metric, value, cases=len(examples), model=model, fingerprint=asked)
