"""What tokens cost: by the connection's extra `usd_per_million_tokens`, else by the public price list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeFloat

from include.common.connection_extra import read_setting

PRICE_KEY = "usd_per_million_tokens"


class Price(BaseModel):
    """US dollars per million tokens."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    input: NonNegativeFloat
    output: NonNegativeFloat

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Return the cost of so many tokens in US dollars."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


def read_price(conn_id: str, extra: Mapping[str, Any]) -> Price | None:
    """Read a connection's price; None if it states none.

    :param extra: of the connection, with or without `"usd_per_million_tokens": {"input": 0.15, "output": 0.6}`.
    :raises AirflowFailException: the stated price is not valid.
    """
    price: Price | None = read_setting(conn_id, extra, PRICE_KEY, Price)
    return price


def tokens_cost(
    conn_id: str, extra: Mapping[str, Any], model: str, input_tokens: int, output_tokens: int
) -> float | None:
    """Return the cost of so many tokens in US dollars: by the connection's price, else by the list; None if unknown.

    :raises AirflowFailException: the price that the connection states is not valid.
    """
    price = read_price(conn_id, extra)
    return price.cost(input_tokens, output_tokens) if price else listed_cost(model, input_tokens, output_tokens)


def listed_cost(model: str, input_tokens: int, output_tokens: int) -> float | None:
    """Return the cost of so many tokens in US dollars by the public price list; None if it lacks the model."""
    from genai_prices import Usage, calc_price

    try:
        return float(calc_price(Usage(input_tokens=input_tokens, output_tokens=output_tokens), model).total_price)
    except LookupError:
        return None


def shown_usd(amount: float) -> str:
    """Write an amount of US dollars: to the cent, or with the digits that a small amount needs."""
    if amount == 0:
        return "$0"
    return f"${amount:,.2f}" if amount >= 0.1 else f"${amount:.2g}" if amount >= 0.0001 else f"${amount:.1e}"
