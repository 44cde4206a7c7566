"""What fine-tuning costs: the jobs, and the calls that compare models."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from include.common.fingerprint import fingerprint
from include.common.prices import listed_cost, read_price
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


class TuningSpending(JobSpending["OpenAIFineTuneOperator"]):
    """Counts fine-tuning jobs."""

    price_form = '"training_usd_per_million_tokens": ...'

    def estimate(self, operator: OpenAIFineTuneOperator, service: OpenAIService) -> tuple[str, float | None]:
        is_priced = training_cost(service, 0) is not None
        return operator.request()["model"], float(operator.estimated_usd or 0) if is_priced else None

    def call(self, operator: OpenAIFineTuneOperator, service: OpenAIService, ti: Any, job: Job) -> Call:
        tokens = job.detail["trained_tokens"] or 0
        call = Call("tuning", service.conn_id, operator.request()["model"], input_tokens=tokens)
        cost, seconds = training_cost(service, tokens), job.detail["seconds"] or 0.0
        return call._replace(cost_usd=cost, seconds=seconds, failed=job.has_no_result)


tuning_spending = TuningSpending()


def check_call(service: OpenAIService, model: str) -> None:
    """Look whether the connection's budgets, if it has any, leave something for a call of a chat model.

    :raises AirflowFailException: they do not, or the price is not known.
    :raises AirflowException: the storage cannot be read.
    """
    if budgets := read_budgets(service.conn_id, service.extra):
        Meter(service.conn_id, budgets, None, model if _cost(service, model, 0, 0) is None else "").check()


def count_call(service: OpenAIService, model: str, completion: ChatCompletion, seconds: float) -> None:
    """Count a call of a chat model."""
    tokens = (completion.usage.prompt_tokens, completion.usage.completion_tokens) if completion.usage else (0, 0)
    cost = _cost(service, model, *tokens)
    if cost and (budgets := read_budgets(service.conn_id, service.extra)):
        meter = Meter(service.conn_id, budgets, None)
        meter.add(cost, model)
        meter.save()
    call = Call("chat", service.conn_id, model, input_tokens=tokens[0], output_tokens=tokens[1], seconds=seconds)
    record(call._replace(cost_usd=cost))


def record_scores(examples: Sequence[Example], by_model: Mapping[str, Mapping[str, float]]) -> None:
    """Record each model's scores for the page GenAI."""
    subject, asked = "answers to the validation examples", fingerprint([example.question for example in examples])
    for model, scores in by_model.items():
        for metric, value in scores.items():
            record_score(subject, metric, value, cases=len(examples), model=model, fingerprint=asked)


def _cost(service: OpenAIService, model: str, input_tokens: int, output_tokens: int) -> float | None:
    price = read_price(service.conn_id, service.extra)
    cost = price.cost if price else partial(listed_cost, model)
    return cost(input_tokens, output_tokens)
