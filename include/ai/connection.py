"""Models as Airflow connections: which model, where, with which key.

A connection for a model has the service's base URL as its host, the API key as its password and
`{"model": "<provider>:<name>"}` as its extra; the provider is one of pydantic-ai's (`openai-chat`, `azure`,
`anthropic`, ...). If the connection does not exist, OPENAI_API_KEY alone is enough.

LAYER_KEYS of the extra are for the layers of `include.ai`. Every other key goes to the provider (`api_version` for
Azure), as with the connections of apache-airflow-providers-common-ai.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowNotFoundException
from httpx2 import AsyncClient, Limits, Timeout
from pydantic_ai.exceptions import UserError
from pydantic_ai.providers import Provider, infer_provider, infer_provider_class

from include.common.provider_http import ProviderClient, check_host
from include.common.shown import quiet_http_clients, shown_text, url_secrets

PER_MINUTE = ("requests_per_minute", "tokens_per_minute")
LAYER_KEYS = ("budgets", "canary", "fallback_conn_ids", *PER_MINUTE, "usd_per_million_tokens")
# Providers' names for the base URL.
URL_ARGUMENTS = ("base_url", "azure_endpoint", "api_base")
# Arguments of providers that a connection cannot contain.
NOT_FROM_AN_EXTRA = ("http_client", "client", "openai_client", "anthropic_client", "bedrock_client", "retry_options")

# Time-outs in seconds: for one call, and for connecting.
CALL_TIMEOUT_S = 90.0
CONNECT_TIMEOUT_S = 10.0
MOST_CONNECTIONS = 1_000
KEPT_CONNECTIONS = 100

T = TypeVar("T")


class ModelSource(NamedTuple):
    """Contents of a connection: the model's id in pydantic-ai's form, its provider's arguments, and the layers'."""

    conn_id: str
    model_id: str
    provider_args: dict[str, Any]
    layer_args: dict[str, Any]

    def build(self, infer: Callable[..., T], hooks: Mapping[str, list[Any]]) -> T:
        """Build the model.

        :param infer: pydantic-ai's `infer_model` or `infer_embedding_model`.
        :param hooks: for its HTTP client, by "request" and "response".
        :raises AirflowFailException: the model cannot be built from the connection.
        """
        base_url, _, query = self.provider_args.get("base_url", "").partition("?")
        client = ProviderClient(
            hooks,
            params=query,  # the openai client would append its paths to it
            timeout=Timeout(CALL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            limits=Limits(max_connections=MOST_CONNECTIONS, max_keepalive_connections=KEPT_CONNECTIONS),
        )
        try:
            return infer(self.model_id, provider_factory=lambda name: self._provider(name, base_url, client))
        except (UserError, ValueError, ImportError, TypeError) as error:
            raise AirflowFailException(
                f"Connection {self.conn_id!r} names the model {self.model_id!r}, which cannot be built: "
                f"{shown_text(error, self.secrets)}"
            ) from None

    def _provider(self, name: str, base_url: str, client: AsyncClient) -> Provider[Any]:
        """Return pydantic-ai's provider `name` for this source, with this client if it takes one.

        :raises ValueError: the provider does not know one of the connection's arguments.
        """
        provider = infer_provider_class(name)
        parameters = inspect.signature(provider).parameters
        given = {key: value for key, value in self.provider_args.items() if key != "base_url"}
        if base_url:
            given[next((key for key in URL_ARGUMENTS if key in parameters), "host")] = base_url
        if "credentials" in parameters and (account := given.pop("service_account_info", None)):
            from google.oauth2.service_account import Credentials

            given["credentials"] = Credentials.from_service_account_info(account)  # type: ignore[no-untyped-call]
        if unknown := sorted(given.keys() - parameters.keys()):
            known = [key for key in parameters if key not in (*URL_ARGUMENTS, *NOT_FROM_AN_EXTRA)]
            raise ValueError(
                f"the provider {name!r} does not accept {', '.join(unknown)}. Besides model, its connection's extra "
                f"may have {', '.join([*known, *LAYER_KEYS])}."
            )
        if "aws_read_timeout" in parameters:  # boto3 has an HTTP client of its own
            given = {"aws_read_timeout": CALL_TIMEOUT_S, "aws_connect_timeout": CONNECT_TIMEOUT_S, **given}
        accepted = parameters.get("http_client")
        if accepted and accepted.annotation != "httpx.AsyncClient | None":
            given["http_client"] = client
        return provider(**given) if given else infer_provider(name)

    @property
    def secrets(self) -> set[str]:
        """The connection's values that must not appear in logs or errors."""
        values = {value for value in self.provider_args.values() if isinstance(value, str)}
        base_url = self.provider_args.get("base_url", "")
        return (values - {base_url}) | url_secrets(base_url)


def read_model_source(conn_id: str, default_model: str) -> ModelSource:
    """Read the connection `conn_id`, or fall back to `default_model` at OpenAI if only OPENAI_API_KEY is set.

    :raises AirflowFailException: neither exists, or the connection has no valid host or model.
    """
    from airflow.sdk import Connection

    quiet_http_clients()
    try:
        conn = Connection.get(conn_id)
    except AirflowNotFoundException:
        if os.environ.get("OPENAI_API_KEY"):
            return ModelSource(conn_id, default_model, {}, {})
        raise AirflowFailException(
            f"Set OPENAI_API_KEY, or create the connection {conn_id!r} "
            '(host = base URL, password = API key, extra = {"model": "openai-chat:<name>"}): '
            "neither exists, so there is no model to call."
        ) from None
    check_host(conn_id, conn.host)
    extra = dict(conn.extra_dejson)
    model_id = extra.pop("model", None)
    if not model_id or not isinstance(model_id, str):
        raise AirflowFailException(
            f'Connection {conn_id!r}: set its extra to {{"model": "<provider>:<name>"}}, '
            f'for example {{"model": "{default_model}"}}. It names no model.'
        )
    extra.pop("vertexai", None)  # a key of the Vertex form, which no longer has a meaning
    layer_args = {key: extra.pop(key) for key in LAYER_KEYS if key in extra}
    # Some connection types have these keys in their forms instead of a host and a password.
    provider_args = {"base_url": conn.host, "api_key": conn.password, **{k: v for k, v in extra.items() if v}}
    return ModelSource(conn_id, model_id, {k: v for k, v in provider_args.items() if v}, layer_args)
