"""Models as Airflow connections: which model, where, with which key.

A connection for a model has the service's base URL as its host, the API key as its password and
`{"model": "<provider>:<name>"}` as its extra; the provider is one of pydantic-ai's (`openai-chat`, `ollama`,
`azure`, `anthropic`, ...). Where the connection does not exist, OPENAI_API_KEY alone is enough.

The extra may also have the model's price (see `include.common.prices`) and the account's limits (see
`include.ai.limited_model`). Every other key goes to the provider (`api_version` for Azure).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowNotFoundException
from httpx2 import AsyncClient, Limits, Timeout
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelResponse
from pydantic_ai.providers import Provider, infer_provider, infer_provider_class

from include.common.prices import PRICE_KEY, Price, listed_cost, read_price
from include.common.provider_http import check_host
from include.common.shown import quiet_http_clients, shown_text, url_secrets

# Keys of the extra that state the account's limits.
LIMIT_KEYS = ("requests_per_minute", "tokens_per_minute", "pool_slots")

# Seconds for one call, and for its connection to be made.
CALL_TIMEOUT_S = 90.0
CONNECT_TIMEOUT_S = 10.0
MOST_CONNECTIONS = 1_000
KEPT_CONNECTIONS = 100

T = TypeVar("T")


class ModelSource(NamedTuple):
    """What a connection holds: the model's id as pydantic-ai reads it, its provider's arguments, limits and price."""

    conn_id: str
    model_id: str
    provider_args: dict[str, Any]
    limits: dict[str, Any]
    price: Price | None

    def build(self, infer: Callable[..., T], hooks: dict[str, list[Any]]) -> T:
        """Build the model.

        :param infer: pydantic-ai's `infer_model` or `infer_embedding_model`.
        :param hooks: the event hooks of the HTTP client.
        :raises AirflowFailException: the connection describes no model that can be built.
        """
        base_url, _, query = self.provider_args.get("base_url", "").partition("?")
        client = AsyncClient(
            params=query,  # the openai client would append its paths to it
            timeout=Timeout(CALL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            limits=Limits(max_connections=MOST_CONNECTIONS, max_keepalive_connections=KEPT_CONNECTIONS),
            event_hooks=hooks,
            follow_redirects=True,
        )
        try:
            return infer(self.model_id, provider_factory=lambda name: self._provider(name, base_url, client))
        except (UserError, ValueError, ImportError, TypeError) as error:
            raise AirflowFailException(
                f"Connection {self.conn_id!r} names the model {self.model_id!r}, which cannot be built: "
                f"{shown_text(error, self.secrets)} Set the connection's extra "
                '{"model": "<provider>:<name>"}, its host (base URL) and its password (API key).'
            ) from None

    def _provider(self, name: str, base_url: str, client: AsyncClient) -> Provider[Any]:
        """Return pydantic-ai's provider `name` for this source, with this client if it takes one."""
        arguments = self.provider_args | ({"base_url": base_url} if base_url else {})
        provider = infer_provider_class(name)
        accepted = inspect.signature(provider).parameters.get("http_client")
        if accepted and accepted.annotation != "httpx.AsyncClient | None":
            arguments["http_client"] = client
        return provider(**arguments) if arguments else infer_provider(name)

    @property
    def secrets(self) -> set[str]:
        """What of the connection's values no log or error may hold."""
        values = {value for value in self.provider_args.values() if isinstance(value, str)}
        base_url = self.provider_args.get("base_url", "")
        return (values - {base_url}) | url_secrets(base_url)

    @property
    def has_price(self) -> bool:
        """Whether the cost of an answer will be known, as far as the model's name tells."""
        return self.price is not None or listed_cost(self.model_id.split(":")[-1], 1, 1) is not None

    def cost(self, response: ModelResponse) -> float | None:
        """Return what the answer cost in US dollars; None if its price is unknown (as for a local model)."""
        if self.price:
            return self.price.cost(response.usage.input_tokens, response.usage.output_tokens)
        try:
            return float(response.cost().total_price)
        except (LookupError, ValueError, AssertionError):
            return None


def read_model_source(conn_id: str, default_model: str) -> ModelSource:
    """Read the connection `conn_id`, or fall back to `default_model` at OpenAI if only OPENAI_API_KEY is set.

    :raises AirflowFailException: neither is there, or the connection has no valid host, model or price.
    """
    from airflow.sdk import Connection

    quiet_http_clients()
    try:
        conn = Connection.get(conn_id)
    except AirflowNotFoundException:
        if os.environ.get("OPENAI_API_KEY"):
            return ModelSource(conn_id, default_model, {}, {}, None)
        raise AirflowFailException(
            f"No model to call: there is no Airflow connection {conn_id!r} and OPENAI_API_KEY is not set. "
            f"Set OPENAI_API_KEY, or create the connection {conn_id!r} "
            '(host = base URL, password = API key, extra = {"model": "openai-chat:<name>"}).'
        ) from None
    check_host(conn_id, conn.host)
    extra = dict(conn.extra_dejson)
    model_id = extra.pop("model", None)
    if not model_id or not isinstance(model_id, str):
        raise AirflowFailException(
            f'Connection {conn_id!r} names no model: set its extra to {{"model": "<provider>:<name>"}}, '
            f'for example {{"model": "{default_model}"}}.'
        )
    price = read_price(conn_id, extra)
    extra.pop(PRICE_KEY, None)
    limits = {key: extra.pop(key) for key in LIMIT_KEYS if key in extra}
    provider_args = {"base_url": conn.host, "api_key": conn.password, **extra}
    return ModelSource(conn_id, model_id, {key: value for key, value in provider_args.items() if value}, limits, price)
