"""A pydantic-ai model that is an Airflow connection.

It costs nothing at parse: the connection is read and the real model built at the first call. Every error says which
connection it came from, what to set, and whether a retry of the task may help. All other concerns of a call are in
`include.ai.layers`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import timedelta
from functools import cached_property
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from pydantic_ai import exceptions as e
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ThinkingPart, ToolCallPart
from pydantic_ai.models import Model, ModelRequestParameters, infer_model
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from include.ai import connection
from include.common.provider_http import MISDIRECTED, is_refusal_status
from include.common.shown import LONGEST_NAME, shown_text, shown_url
from include.common.text import clean_json, clean_text

# Used if only OPENAI_API_KEY is set: the cheapest current model in the openai package's list.
DEFAULT_MODEL = "openai-chat:gpt-6-luna"

UNKNOWN_TOOL = "unknown_tool"

log = logging.getLogger(__name__)


class RequestRefused(AirflowFailException):
    """The provider refuses the request and would again: it is invalid, too long, or against its rules."""


class TextTooLong(RequestRefused):
    """The text does not fit the model's context window."""


class ConnectionModel(WrapperModel):
    """The model of the Airflow connection `conn_id`: see `include.ai.connection` for its contents."""

    def __init__(self, conn_id: str) -> None:
        Model.__init__(self)  # WrapperModel's would build the model now
        self.conn_id = conn_id
        self._built: tuple[asyncio.AbstractEventLoop | None, Model] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.conn_id!r})"

    @cached_property
    def source(self) -> connection.ModelSource:
        """The contents of the connection."""
        return connection.read_model_source(self.conn_id, DEFAULT_MODEL)

    def http_hooks(self) -> dict[str, list[Any]]:
        """Return the hooks of the model's HTTP client."""
        return {}

    @property
    def wrapped(self) -> Model:  # type: ignore[override]
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        # An HTTP client's connections belong to the event loop that they were opened in.
        if self._built is None or loop not in (None, self._built[0]):
            self._built = (loop, self.source.build(infer_model, self.http_hooks()))
        return self._built[1]

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Call the model.

        :raises AirflowFailException: no retry of the task can help. The provider's error is its context.
        :raises AirflowException: a later try may succeed.
        """
        log.debug("Messages: %s", messages)
        ours = {"timeout": connection.CALL_TIMEOUT_S, **(model_settings or {})}
        settings: Any = {key: ours[key] for key in ours if key not in self.wrapped.unsupported_settings}
        try:
            response = await self.wrapped.request(messages, settings, model_request_parameters)
        except e.ModelAPIError as error:
            log.debug("The provider's error: %s", error)  # it may quote the key or the prompt
            raise self._task_error(error) from None
        _clean(response, model_request_parameters)
        log.debug("Answer: %s", response)
        return response

    def _task_error(self, error: e.ModelAPIError) -> AirflowException:
        """Return the exception that fails the task if there is no other call."""
        kind: type[AirflowException] = AirflowFailException
        status = getattr(error, "status_code", None)
        match error:
            case e.ModelAuthenticationError():
                what = "set its password (or OPENAI_API_KEY) to a key for this model: the key was refused."
            case e.ModelNotFoundError():
                what = 'set its extra {"model": ...} or its host: there is no such model or URL.'
            case e.ModelQuotaExceededError():
                what = "the account's quota is used up. Raise it, or name fallback_conn_ids in the extra."
            case e.ModelContextWindowExceededError():
                kind, what = TextTooLong, "the text is too long for the model."
            case _ if status == MISDIRECTED:
                what = "set its host to the server that answers: this one redirects to another host."
            case _ if isinstance(error, e.ModelRequestRejectedError) or is_refusal_status(status):
                kind, what = RequestRefused, "the request is invalid."
            case e.ModelTimeoutError():
                kind, what = AirflowException, f"no answer within {connection.CALL_TIMEOUT_S:.0f} s."
            case e.ModelConnectionError():
                kind, what = AirflowException, "check its host, and that the server runs: it cannot be reached."
            case _:
                kind, what = AirflowException, "the call failed."
        # The provider's message may quote what it was sent; its codes do not.
        said = [
            f"{name} {shown_text(value, self.source.secrets, LONGEST_NAME)}"
            for name in ("status_code", "provider_error_code", "provider_error_type")
            if (value := getattr(error, name, None))
        ]
        where = ", ".join([f"model {self.model_name!r} at {shown_url(self.base_url)}", *said])
        return kind(f"Connection {self.conn_id!r}: {what} ({where})")


def connection_model(
    conn_id: str, budget_usd: float | None = None, reuse: str | timedelta = "retries"
) -> ConnectionModel:
    """Return the model of the connection `conn_id`, with the layers that exist.

    :param budget_usd: what a task may spend on each connection, in US dollars.
    :param reuse: who may reuse a paid answer: see `include.ai.llm_kwargs`.
    :raises ValueError: one of these is not valid, or the layer that it needs is missing.
    """
    try:
        from include.ai.layers import layered_model
    except ImportError:  # a copied pattern may lack it
        if budget_usd is None and reuse in ("retries", "try"):
            return ConnectionModel(conn_id)
        raise ValueError("budget_usd needs the layer spend, and reuse the layer reuse.") from None
    return layered_model(conn_id, budget_usd=budget_usd, reuse=reuse)


def _clean(response: ModelResponse, asked: ModelRequestParameters) -> None:
    """Remove from an answer, which is paid already, characters that pydantic or Airflow's database would refuse.

    A tool that the model was not given loses its name, which may be any text, and which SDKs log.
    """
    is_json = asked.output_object is not None  # JSON may contain such characters as escapes
    tools = {tool.name for tool in (*asked.function_tools, *asked.output_tools)}
    for part in response.parts:
        if isinstance(part, ToolCallPart) and part.tool_name not in tools:
            part.tool_name = UNKNOWN_TOOL
        match part:
            case TextPart() | ThinkingPart():
                part.content = clean_json(part.content) if is_json else clean_text(part.content)
            case ToolCallPart(args=arguments) if arguments:
                part.args = clean_json(arguments if isinstance(arguments, str) else json.dumps(arguments))
