"""What paid jobs cost: within their connection's budgets, and into the ledger."""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

from include.jobs.service import OpenAIService, openai_service
from include.spend.budgets import Meter, count_job, read_budgets
from include.spend.ledger import Call, record_job

if TYPE_CHECKING:
    from include.jobs.job import Job


class JobSpending(ABC):
    """Count the jobs of an operator (an `include.jobs.operator.PaidJobOperator`).

    A job counts with its estimate from its creation, and with its cost once it has ended. So the budgets also hold for
    jobs under way.
    """

    # How the connection's extra states the price.
    price_form: ClassVar[str]

    @abstractmethod
    def estimate(self, operator: Any, service: OpenAIService) -> tuple[str, float | None]:
        """Return the job's model, and its least cost in US dollars; None if the price is not known."""

    @abstractmethod
    def call(self, operator: Any, service: OpenAIService, ti: Any, job: Job) -> Call:
        """Return what an ended job used and cost."""

    def allow(self, operator: Any, ti: Any, before: Job | None) -> None:
        """Check that the connection's budgets, if it has any, have something left for a new job.

        :param before: the job that the new one follows, if any; it may have cost something.
        :raises AirflowFailException: they have not, or the price is not known.
        :raises AirflowException: the storage cannot be read.
        """
        if before and before.has_ended:
            self.count_ended(operator, ti, before)
        service = openai_service(operator.conn_id)
        if budgets := read_budgets(service.conn_id, service.extra):
            model, usd = self.estimate(operator, service)
            unpriced = model if usd is None else ""
            Meter(service.conn_id, budgets, None, unpriced, self.price_form).check(usd or 0.0)

    def count_started(self, operator: Any, job: Job) -> None:
        """Count a new job with its estimate."""
        service = openai_service(operator.conn_id)
        if budgets := read_budgets(service.conn_id, service.extra):
            usd = self.estimate(operator, service)[1] or 0.0
            count_job(service.conn_id, budgets, job.id, _started(job), usd, is_final=False)

    def count_ended(self, operator: Any, ti: Any, job: Job) -> None:
        """Count an ended job with its cost: once, however often its end is seen."""
        service = openai_service(operator.conn_id)
        call = self.call(operator, service, ti, job)
        if budgets := read_budgets(service.conn_id, service.extra):
            count_job(service.conn_id, budgets, job.id, _started(job), call.cost_usd or 0.0, is_final=True)
        record_job(call, job.id, _started(job))


def _started(job: Job) -> datetime:
    return datetime.fromtimestamp(job.created_at, UTC)
