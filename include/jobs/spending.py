"""What paid jobs and calls of a service cost: within the connection's budgets, and into the ledger."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from include.common.prices import listed_cost, read_price
from include.spend.budgets import Meter, count_job, read_budgets
from include.spend.ledger import Call, fingerprint, record, record_job

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

    from include.jobs.job import Job
    from include.jobs.operator import PaidJobOperator
    from include.jobs.service import OpenAIService


__all__ = ["Call", "fingerprint"]


def check_job(operator: PaidJobOperator, service: OpenAIService) -> None:
    """Look whether the connection's budgets, if it has any, leave something for the operator's job.

    :raises AirflowFailException: they do not, or the price is not known.
    :raises AirflowException: the storage cannot be read.
    """
    if budgets := read_budgets(service.conn_id, service.extra):
        model, usd = operator.estimate(service)
        meter = Meter(service.conn_id, budgets, None, model if usd is None else "", operator.price_form)
        meter.check(usd or 0.0)


def count_started(operator: PaidJobOperator, service: OpenAIService, job: Job) -> None:
    """Count a job that has begun with its estimate."""
    if budgets := read_budgets(service.conn_id, service.extra):
        usd = operator.estimate(service)[1] or 0.0
        count_job(service.conn_id, budgets, job.id, _started(job), usd, is_final=False)


def count_ended(service: OpenAIService, job: Job, call: Call) -> None:
    """Count a job that has ended with what it has cost: once, however often its end is seen."""
    if budgets := read_budgets(service.conn_id, service.extra):
        count_job(service.conn_id, budgets, job.id, _started(job), call.cost_usd or 0.0, is_final=True)
    record_job(call, job.id, _started(job))


def check_call(service: OpenAIService, model: str) -> None:
    """Look whether the connection's budgets, if it has any, leave something for a call of a chat model.

    :raises AirflowException: as `check_job`.
    """
    if budgets := read_budgets(service.conn_id, service.extra):
        Meter(service.conn_id, budgets, None, model if chat_cost(service, model, 0, 0) is None else "").check()


def count_call(service: OpenAIService, model: str, completion: ChatCompletion, seconds: float) -> None:
    """Count a call of a chat model."""
    tokens = (completion.usage.prompt_tokens, completion.usage.completion_tokens) if completion.usage else (0, 0)
    cost = chat_cost(service, model, *tokens)
    if cost and (budgets := read_budgets(service.conn_id, service.extra)):
        meter = Meter(service.conn_id, budgets, None)
        meter.add(cost, model)
        meter.save()
    call = Call("chat", service.conn_id, model, input_tokens=tokens[0], output_tokens=tokens[1], seconds=seconds)
    record(call._replace(cost_usd=cost))


def chat_cost(service: OpenAIService, model: str, input_tokens: int, output_tokens: int) -> float | None:
    """Return what a call costs in US dollars; None if the price is not known."""
    price = read_price(service.conn_id, service.extra)
    cost = price.cost if price else partial(listed_cost, model)
    return cost(input_tokens, output_tokens)


def _started(job: Job) -> datetime:
    return datetime.fromtimestamp(job.created_at, UTC)
