"""Models as Airflow connections: which model, where, with which key.

A connection for a model has the service's base URL as its host, the API key as its password and
`{"model": "<provider>:<name>"}` as its extra; the provider is one of pydantic-ai's (`openai-chat`, `ollama`,
`azure`, `anthropic`, ...). Where the connection does not exist, OPENAI_API_KEY alone is enough.

The extra may also tell what the account allows and what the model costs:

- `"requests_per_minute"`, `"tokens_per_minute"`: the account's limits, with `"pool_slots"`: the number of slots of
  the pool `llm_pool`. Each task gets the share of the limits that its slots are of the pool, so that all of them
  together keep the limits.
- `"usd_per_million_tokens": {"input": 0.15, "output": 0.6}`: for models that are in no price list.

Every other key goes to the provider (`api_version` for Azure).
"""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowNotFoundException
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError, model_validator

from include.common.shown import UNREADABLE, quiet_http_clients, shown_url, url_secrets

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response
    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.providers import Provider

# "Misdirected Request": the server does not answer for the host that was asked.
MISDIRECTED = 421


class Price(BaseModel):
    """US dollars per million tokens."""

    model_config = ConfigDict(extra="forbid")

    input: float
    output: float


class Account(BaseModel):
    """What a connection's extra tells of the account: see the module."""

    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None
    pool_slots: PositiveInt | None = None
    usd_per_million_tokens: Price | None = None

    @model_validator(mode="after")
    def _limits_are_shared(self) -> Account:
        if (self.requests_per_minute or self.tokens_per_minute) and not self.pool_slots:
            raise ValueError('limits per minute need "pool_slots", the number of slots of the pool llm_pool')
        return self

    def share(self, slots: int) -> tuple[float | None, float | None]:
        """Requests and tokens per minute for a task that has so many of the pool's slots."""
        part = slots / (self.pool_slots or slots)
        return (
            self.requests_per_minute and self.requests_per_minute * part,
            self.tokens_per_minute and self.tokens_per_minute * part,
        )


class ModelSource(NamedTuple):
    """Where a model comes from: its id as pydantic-ai reads it, the arguments for its provider, and the account."""

    model_id: str
    provider_args: dict[str, Any]
    account: Account

    def provider(self, name: str, http_client: AsyncClient | None = None) -> Provider[Any]:
        """The pydantic-ai provider `name`, pointed at this source (a `provider_factory`).

        :param http_client: to use for its requests, where the provider is one of the many that take it.
        """
        from pydantic_ai.providers import infer_provider, infer_provider_class

        arguments = dict(self.provider_args)
        provider = infer_provider_class(name)
        accepted = inspect.signature(provider).parameters.get("http_client")
        if http_client and accepted and accepted.annotation != "httpx.AsyncClient | None":
            arguments["http_client"] = http_client
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
        from genai_prices import Usage, calc_price

        if self.account.usd_per_million_tokens:
            return True
        try:
            calc_price(Usage(input_tokens=1, output_tokens=1), self.model_id.split(":")[-1])
        except LookupError:
            return False
        return True

    def cost(self, response: ModelResponse) -> float | None:
        """What the answer cost in US dollars; None if its price is unknown (as for a local model)."""
        if price := self.account.usd_per_million_tokens:
            usage = response.usage
            return (usage.input_tokens * price.input + usage.output_tokens * price.output) / 1e6
        try:
            return float(response.cost().total_price)
        except (LookupError, ValueError, AssertionError):
            return None


def model_source(conn_id: str, default_model: str) -> ModelSource:
    """Read the connection `conn_id`, or fall back to `default_model` at OpenAI if only OPENAI_API_KEY is set.

    :raises AirflowFailException: neither is there, the connection names no model, or an account that makes no sense.
    """
    from airflow.sdk import Connection

    try:
        conn = Connection.get(conn_id)
    except AirflowNotFoundException:
        if os.environ.get("OPENAI_API_KEY"):
            quiet_http_clients()
            return ModelSource(default_model, {}, Account())
        raise AirflowFailException(
            f"No model to call: there is no Airflow connection {conn_id!r} and OPENAI_API_KEY is not set. "
            f"Set OPENAI_API_KEY, or create the connection {conn_id!r} "
            '(host = base URL, password = API key, extra = {"model": "openai-chat:<name>"}).'
        ) from None
    check_host(conn_id, conn.host)
    quiet_http_clients()
    extra = dict(conn.extra_dejson)
    model_id = extra.pop("model", None)
    if not model_id or not isinstance(model_id, str):
        raise AirflowFailException(
            f'Connection {conn_id!r} names no model: set its extra to {{"model": "<provider>:<name>"}}, '
            f'for example {{"model": "{default_model}"}}.'
        )
    known = {key: extra.pop(key) for key in list(extra) if key in Account.model_fields}
    try:
        account = Account.model_validate(known)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc'])) or 'limits'}: {each['msg']}" for each in error.errors()]
        raise AirflowFailException(f"Connection {conn_id!r}, extra: {'; '.join(problems)}.") from None
    provider_args = {"base_url": conn.host, "api_key": conn.password, **extra}
    return ModelSource(model_id, {key: value for key, value in provider_args.items() if value}, account)


def check_host(conn_id: str, host: str | None) -> None:
    """See that a connection's host is a URL of which it is clear where its login ends.

    :raises AirflowFailException: it is not; the message does not show it.
    """
    if shown_url(host) == UNREADABLE:
        raise AirflowFailException(
            f"Connection {conn_id!r}: its host is not a valid URL. It is such as https://host/v1; in a login, "
            "characters such as / ? # @ are percent-encoded."
        )


async def stay_on_host(response: Response) -> None:
    """Follow no redirect to another host, nor to an unencrypted one: a hook for the responses of an HTTP client.

    What is sent (prompts, a key in the URL) is for the host of the connection. Such a response counts as MISDIRECTED,
    as clients take a status below 400 for no error.
    """
    from httpx2 import InvalidURL

    if not 300 <= response.status_code < 400:
        return
    at = response.request.url
    try:
        to = at.join(response.headers.get("location", ""))
    except InvalidURL:
        to = None
    if response.has_redirect_location and to and to.host == at.host and to.scheme in (at.scheme, "https"):
        return
    response.headers.pop("location", None)
    response.status_code = MISDIRECTED
