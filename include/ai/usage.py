"""Usage of a task's model calls: tokens, requests, seconds and US dollars, in the XCom key `llm_usage`."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from pydantic_ai.messages import ModelResponse

from include.common.shown import LONGEST_NAME, shown_text
from include.common.task_context import task_context

try:
    from include.common import prices
except ImportError:  # a copied pattern may lack it: then the public price list is used
    prices = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from pydantic_ai.embeddings import EmbeddingResult

    from include.ai.connection import ModelSource

USAGE_XCOM_KEY = "llm_usage"

log = logging.getLogger(__name__)


class LLMUsage(TypedDict):
    """The sum over all model calls of one task instance.

    `cost_usd` is None if the price of any call is unknown (as for a local model). `reused` calls were answered from the
    storage, and would have cost `saved_usd`: see `include.ai.reuse`.
    """

    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    seconds: float
    cost_usd: float | None
    reused: NotRequired[int]
    saved_usd: NotRequired[float | None]


class UsageRecorder:
    """Adds up the calls of each try of a task instance, and keeps its XCom `llm_usage` up to date."""

    def __init__(self) -> None:
        self._totals: dict[str, LLMUsage | None] = {}

    def record(self, call: LLMUsage) -> None:
        """Count one answered call. Outside a task it is only logged."""
        if call.get("reused"):
            log.info("An earlier answer of %(model)s is reused: nothing was asked or paid.", call)
        else:
            log.info(
                "Model %(model)s answered in %(seconds).2f s (%(input_tokens)d input and %(output_tokens)d output "
                "tokens).",
                call,
            )
        if context := task_context():
            ti = context["ti"]
            # The id is new at every try: a retry starts from zero, as its XComs do.
            total = self._totals[str(ti.id)] = sum_usage(self._totals.get(str(ti.id)), call)
            push_usage(ti, total)


def push_usage(ti: Any, usage: LLMUsage | None) -> None:
    """Set the XCom `llm_usage`, in a thread: within a running event loop, the XCom backend could not open a bucket."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(ti.xcom_push, key=USAGE_XCOM_KEY, value=usage).result()


def read_usage(source: ModelSource, response: ModelResponse, seconds: float) -> LLMUsage:
    """Return the usage of one call; cost and seconds are also set on the response.

    :raises AirflowFailException: the connection's price is not valid.
    """
    price, used = stated_price(source), response.usage
    cost_usd = price.cost(used.input_tokens, used.output_tokens) if price else listed_cost(response)
    response.usage.cost = None if cost_usd is None else Decimal(str(cost_usd))
    response.metadata = {**(response.metadata or {}), "seconds": round(seconds, 3)}
    return {
        "model": shown_text(response.model_name or "unknown", longest=LONGEST_NAME),
        "requests": 1,
        "input_tokens": response.usage.input_tokens,
        "output_tokens": response.usage.output_tokens,
        "seconds": round(seconds, 3),
        "cost_usd": cost_usd,
    }


def reused_usage(response: ModelResponse) -> LLMUsage:
    """Return the usage of a call that a stored answer served: nothing."""
    return {
        "model": shown_text(response.model_name or "unknown", longest=LONGEST_NAME),
        "requests": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "seconds": 0.0,
        "cost_usd": 0.0,
        "reused": 1,
        "saved_usd": None if response.usage.cost is None else float(response.usage.cost),
    }


def stated_price(source: ModelSource) -> prices.Price | None:
    """Return the price that the connection sets; None if it sets none.

    :raises AirflowFailException: the price is not valid.
    """
    return None if prices is None else prices.read_price(source.conn_id, source.layer_args)


def listed_cost(answer: ModelResponse | EmbeddingResult) -> float | None:
    """Return what an answer cost in US dollars by the public price list; None if the list lacks the model."""
    try:
        return float(answer.cost().total_price)
    except (LookupError, ValueError, AssertionError):
        return None


def sum_usage(*usages: LLMUsage | None) -> LLMUsage | None:
    """Add up the usage of calls, with the model of the last one; None if there is none."""
    known = [usage for usage in usages if usage]
    if not known:
        return None
    costs = [usage["cost_usd"] for usage in known]
    total: LLMUsage = {
        "model": known[-1]["model"],
        "requests": sum(usage["requests"] for usage in known),
        "input_tokens": sum(usage["input_tokens"] for usage in known),
        "output_tokens": sum(usage["output_tokens"] for usage in known),
        "seconds": round(sum(usage["seconds"] for usage in known), 3),
        "cost_usd": None if None in costs else sum(cost for cost in costs if cost),
    }
    if reused := sum(usage.get("reused", 0) for usage in known):
        saved = [usage.get("saved_usd", 0.0) for usage in known]
        total["reused"], total["saved_usd"] = reused, None if None in saved else sum(usd for usd in saved if usd)
    return total
