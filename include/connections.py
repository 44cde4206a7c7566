"""Models as Airflow connections: which model, where, with which key.

A connection for a model has the service's base URL as its host, the API key as its password and
`{"model": "<provider>:<name>"}` as its extra; the provider is one of pydantic-ai's (`openai-chat`, `ollama`,
`azure`, `anthropic`, ...). Every other key of the extra goes to that provider (`api_version` for Azure).
Where the connection does not exist, OPENAI_API_KEY alone is enough.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowNotFoundException

if TYPE_CHECKING:
    from pydantic_ai.providers import Provider


class ModelSource(NamedTuple):
    """Where a model comes from: its id as pydantic-ai reads it, and the arguments for its provider."""

    model_id: str
    provider_args: dict[str, Any]

    def provider(self, name: str) -> Provider[Any]:
        """The pydantic-ai provider `name`, pointed at this source (a `provider_factory`)."""
        from pydantic_ai.providers import infer_provider, infer_provider_class

        if not self.provider_args:
            return infer_provider(name)
        return infer_provider_class(name)(**self.provider_args)


def model_source(conn_id: str, default_model: str) -> ModelSource:
    """Read the connection `conn_id`, or fall back to `default_model` at OpenAI if only OPENAI_API_KEY is set.

    :raises AirflowFailException: neither is there, or the connection names no model.
    """
    from airflow.sdk import Connection

    try:
        conn = Connection.get(conn_id)
    except AirflowNotFoundException:
        if os.environ.get("OPENAI_API_KEY"):
            return ModelSource(default_model, {})
        raise AirflowFailException(
            f"No model to call: there is no Airflow connection {conn_id!r} and OPENAI_API_KEY is not set. "
            f"Set OPENAI_API_KEY, or create the connection {conn_id!r} "
            '(host = base URL, password = API key, extra = {"model": "openai-chat:<name>"}).'
        ) from None
    extra = dict(conn.extra_dejson)
    model_id = extra.pop("model", None)
    if not model_id or not isinstance(model_id, str):
        raise AirflowFailException(
            f'Connection {conn_id!r} names no model: set its extra to {{"model": "<provider>:<name>"}}, '
            f'for example {{"model": "{default_model}"}}.'
        )
    provider_args = {"base_url": conn.host, "api_key": conn.password, **extra}
    return ModelSource(model_id, {key: value for key, value in provider_args.items() if value})
