"""Whether the demo may spend money, and what it may cost."""

from __future__ import annotations

import json
import os
from typing import Any

from genai_prices import Usage, calc_price

from local.environment import user_environment, uses_embedded_model

KEY = "OPENAI_API_KEY"
CONNECTION = "AIRFLOW_CONN_PYDANTICAI_DEFAULT"
# As include.ai.model has it, whose import would take seconds.
DEFAULT_MODEL = "openai-chat:gpt-6-luna"

# What all DAGs of the demo took with the embedded model, whose answers are short, and the most that a model takes which
# thinks before it answers, as a multiple of that.
INPUT_TOKENS, OUTPUT_TOKENS = 8_000, 4_000
MOST = 10

EMBEDDED_ALL_THE_SAME = (
    f"{KEY} is set. The demo uses the embedded model all the same, as OpenAI's costs money: make demo PAID=1 uses it."
)


class PaidModelError(Exception):
    """The stack that already runs calls a paid model, which nobody asked this demo to do."""


def has_key_alone() -> bool:
    """Whether only an OpenAI key, which may be there for other work, says which model to call."""
    found = user_environment()
    return bool(found.get(KEY)) and not found.get(CONNECTION)


def use_embedded_model() -> None:
    """Let this process, and the stack that it starts, know no OpenAI key."""
    os.environ[KEY] = ""  # not removed, as it may be in .env


def cost_notice(share: float) -> str | None:
    """Say what the demo may cost by its model's price; None if the model is the embedded one.

    :param share: of the DAGs that the demo has.
    """
    found = user_environment()
    if uses_embedded_model(found):
        return None
    try:
        extra: Any = json.loads(found.get(CONNECTION) or "{}").get("extra", {})
        extra = json.loads(extra) if isinstance(extra, str) else extra
        model = str(extra.get("model") or DEFAULT_MODEL)
        usage = Usage(input_tokens=int(INPUT_TOKENS * share), output_tokens=int(OUTPUT_TOKENS * share))
        cost = float(calc_price(usage, model.partition(":")[2]).total_price)
    except (ValueError, AttributeError, LookupError):
        return "What the demo costs is not known: its model is in no public price list. A local one costs nothing."
    return f"By the public price list of {model}, the demo costs between ${cost:.4f} and ${cost * MOST:.4f}."
