"""A service with OpenAI's API for files, fine-tuning jobs and batches, as an Airflow connection.

The connection (type `openai`) has the service's base URL as its host (none for OpenAI), the API key as its password,
and `{"model": "<base model>", "training_usd_per_million_tokens": <price>}` as its extra, which only jobs that need a
base model or a price read. Without a connection, OPENAI_API_KEY is enough.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowNotFoundException

from include.common.provider_http import MISDIRECTED, ProviderClient, check_host, is_passing_status
from include.common.shown import LONGEST_NAME, quiet_http_clients, shown_text, shown_url, url_secrets

if TYPE_CHECKING:
    from httpx2 import Request, Response
    from openai import AsyncOpenAI

# Seconds for one call. Creating a job is one call, however long the job takes.
CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class OpenAIService:
    """The URL and key of a service. No text form of this object contains the key."""

    conn_id: str
    base_url: str | None
    key: str = field(repr=False)
    extra: dict[str, Any] = field(repr=False)

    def __str__(self) -> str:
        return f"Connection {self.conn_id!r} ({urlsplit(self.public_url).hostname})"

    @property
    def url(self) -> str:
        """The base URL; that of OpenAI if the connection has none."""
        return (self.base_url or "https://api.openai.com/v1").rstrip("/")

    @property
    def public_url(self) -> str:
        """The base URL without login and secrets."""
        return shown_url(self.url)

    @property
    def is_openai(self) -> bool:
        """Whether this is OpenAI's own service."""
        return urlsplit(self.url).hostname == "api.openai.com"

    @property
    def base_model(self) -> str:
        """The model to start from.

        :raises AirflowFailException: the connection names none.
        """
        model = self.extra.get("model")
        if not model or not isinstance(model, str):
            raise AirflowFailException(
                f"{self} names no base model: set the connection's extra to "
                '{"model": "<a model that this service fine-tunes>"}.'
            )
        return model

    def client(self, retries: int = 3, after: Sequence[Callable[[Response], Awaitable[None]]] = ()) -> AsyncOpenAI:
        """Return a client that repeats a call up to `retries` times if another try may help.

        :param after: hooks for each response.
        """
        from openai import DEFAULT_CONNECTION_LIMITS, AsyncOpenAI

        async def keep_secret(request: Request) -> None:
            request.extensions["key"] = self.key  # for `describe`: a login in the URL replaces the key in the header

        quiet_http_clients()
        base_url, _, query = self.url.partition("?")
        return AsyncOpenAI(
            api_key=self.key,
            base_url=base_url,
            max_retries=retries,
            timeout=CALL_TIMEOUT_S,
            http_client=ProviderClient(
                {"request": [keep_secret], "response": [*after]},
                params=query,
                limits=DEFAULT_CONNECTION_LIMITS,
            ),
        )


def openai_service(conn_id: str) -> OpenAIService:
    """Read the connection `conn_id`, or fall back to OpenAI if only OPENAI_API_KEY is set.

    :raises AirflowFailException: neither is there.
    """
    from airflow.sdk import Connection

    try:
        conn = Connection.get(conn_id)
    except AirflowNotFoundException:
        key = os.environ.get("OPENAI_API_KEY")
        if not key:
            raise AirflowFailException(
                f"No service to ask: there is no Airflow connection {conn_id!r} and OPENAI_API_KEY is not set. "
                f"Create the connection {conn_id!r} (type openai, host = base URL of a service with OpenAI's "
                'fine-tuning API, password = API key, extra = {"model": "<base model>"}).'
            ) from None
        return OpenAIService(conn_id, None, key, {})
    check_host(conn_id, conn.host)
    # The client needs some key, even for a local service without one.
    return OpenAIService(conn_id, conn.host or None, conn.password or "none", dict(conn.extra_dejson))


def is_passing(error: Exception) -> bool:
    """Return whether the same call may succeed later: after some statuses (see `is_passing_status`) or no answer."""
    from openai import APIConnectionError, APIStatusError

    if isinstance(error, APIStatusError):
        return is_passing_status(error.status_code)
    return isinstance(error, APIConnectionError)


def describe(error: Exception) -> str:
    """Return a call's error as one line, without the key and the request, which the provider's own text may contain."""
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    match error:
        case APITimeoutError():
            return f"no answer within {CALL_TIMEOUT_S:.0f} s"
        case APIConnectionError():
            return "the server cannot be reached, or ended the connection without an answer"
        case APIStatusError(status_code=401):
            return "the key was refused (status 401); set the connection's password to a valid key"
        case APIStatusError(status_code=status) if status == MISDIRECTED:
            return f"the server redirects to another host (status {status}); set the connection's host to that server"
        case APIStatusError():
            secrets = {error.request.extensions.get("key", "")} | url_secrets(error.request.url)
            said = {
                name: shown_text(value, secrets, LONGEST_NAME)
                for name in ("code", "param")
                if (value := getattr(error, name, None))
            }
            return ", ".join([f"status {error.status_code}", *(f"{name} {value}" for name, value in said.items())])
    return type(error).__name__


def task_error(service: OpenAIService, action: str, error: Exception) -> AirflowException:
    """Return the exception with which the task fails: without a retry if the error is non-retryable."""
    kind = AirflowException if is_passing(error) else AirflowFailException
    return kind(f"{service}: {action} failed: {describe(error)}.")
