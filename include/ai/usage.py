"""What the model calls of a task used: tokens, requests, seconds and cost, in the XCom key `llm_usage`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypedDict

from include.common.shown import LONGEST_NAME, shown_text

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse

USAGE_XCOM_KEY = "llm_usage"

log = logging.getLogger(__name__)


class LLMUsage(TypedDict):
    """The sum over all model calls of one task instance.

    `cost_usd` is None as soon as the price of one call is unknown (as for a local model).
    """

    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    seconds: float
    cost_usd: float | None


class UsageRecorder:
    """Adds up the calls of each task instance and keeps its XCom `llm_usage` current.

    A task instance's id is new at every try, so a retry starts from zero, as its XComs do.
    """

    def __init__(self) -> None:
        self._totals: dict[str, LLMUsage] = {}

    def record(self, response: ModelResponse, seconds: float, cost_usd: float | None) -> None:
        """Count one answered call. Outside a task it is only logged."""
        from airflow.sdk import get_current_context

        call = usage_of(response, seconds, cost_usd)
        log.info(
            "Model %s answered in %.2f s (%d input and %d output tokens).",
            call["model"],
            seconds,
            call["input_tokens"],
            call["output_tokens"],
        )
        try:
            ti = get_current_context()["ti"]
        except RuntimeError:
            return
        total = self._totals.get(str(ti.id))
        total = add(total, call) if total else call
        self._totals[str(ti.id)] = total
        ti.xcom_push(key=USAGE_XCOM_KEY, value=total)


def usage_of(response: ModelResponse, seconds: float, cost_usd: float | None) -> LLMUsage:
    """What one call used."""
    return {
        "model": shown_text(response.model_name or "unknown", longest=LONGEST_NAME),
        "requests": 1,
        "input_tokens": response.usage.input_tokens,
        "output_tokens": response.usage.output_tokens,
        "seconds": round(seconds, 3),
        "cost_usd": cost_usd,
    }


def add(total: LLMUsage, call: LLMUsage) -> LLMUsage:
    """Both together."""
    costs = (total["cost_usd"], call["cost_usd"])
    return {
        "model": call["model"],
        "requests": total["requests"] + call["requests"],
        "input_tokens": total["input_tokens"] + call["input_tokens"],
        "output_tokens": total["output_tokens"] + call["output_tokens"],
        "seconds": round(total["seconds"] + call["seconds"], 3),
        "cost_usd": None if costs[0] is None or costs[1] is None else costs[0] + costs[1],
    }
