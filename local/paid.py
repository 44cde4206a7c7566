"""Whether the demo may spend money, and how much it may cost."""

from __future__ import annotations

import json
import os
from typing import Any

from genai_prices import Usage, calc_price

from local.environment import user_environment, uses_embedded_model

KEY = "OPENAI_API_KEY"
CONNECTION = "AIRFLOW_CONN_PYDANTICAI_DEFAULT"
# The same as in include.ai.model, whose import would take seconds.
DEFAULT_MODEL = "openai-chat:gpt-6-luna"

# The tokens of all DAGs of the demo with the embedded model, whose answers are short. A model that thinks before it
# answers may take so many times as many.
INPUT_TOKENS, OUTPUT_TOKENS = 8_000, 4_000
MOST = 10

EMBEDDED_ALL_THE_SAME = (
    f"{KEY} is set. The demo still uses the embedded model, as OpenAI's costs money: make demo PAID=1 uses it."
)


class PaidModelError(Exception):
    """The running stack calls a paid model, which this demo was not asked to do."""


def has_key_alone() -> bool:
    """Return whether the model is set only by an OpenAI key, which may be there for other work."""
    found = user_environment()
    return bool(found.get(KEY)) and not found.get(CONNECTION)


def use_embedded_model() -> None:
    """Hide the OpenAI key from this process and the stack that it starts."""
    os.environ[KEY] = ""  # overrides one in .env


def cost_notice(share: float) -> str | None:
    """Return a line about what the demo may cost; None with the embedded model.

    :param share: how many of the template's DAGs run, as a fraction.
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
        return (
            "The cost of the demo is not known: its model is not in the public price list. A local model costs nothing."
        )
    return f"By the public price of {model}, the demo costs between ${cost:.4f} and ${cost * MOST:.4f}."
