"""A pydantic-ai model that is an Airflow connection.

It costs nothing at parse: the connection is read and the real model built at the first call. Every call keeps the
account's limits and heeds the provider's pauses, its usage goes to XCom, and every error says which connection it
came from and whether a retry can mend it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from pydantic_ai.models import Model
from pydantic_ai.models.wrapper import WrapperModel

from include.ai.connection import MISDIRECTED, ModelSource, model_source, stay_on_host
from include.ai.rate_limit import RateLimit
from include.ai.usage import UsageRecorder
from include.common.shown import LONGEST_NAME, shown_text, shown_url
from include.common.text import clean_json, clean_text

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.settings import ModelSettings

# Used where only OPENAI_API_KEY is set: the cheapest current model in the openai package's list.
DEFAULT_MODEL = "openai-chat:gpt-6-luna"

# Seconds for one attempt at a call. The openai client tries three times (429, 5xx, lost connections), waits
# as `Retry-After` says up to 120 s, and leaves longer waits to us.
CALL_TIMEOUT_S = 90.0
LONGEST_WAIT_S = 600.0
MOST_WAITS = 2

# Connections that are kept open, and the most that there may be.
KEPT_CONNECTIONS = 100
MOST_CONNECTIONS = 1_000
CONNECT_TIMEOUT_S = 10.0

log = logging.getLogger(__name__)


class RequestRefused(AirflowFailException):
    """The provider refuses what was asked, and would again: it is invalid, too long, or against its rules."""


class TextTooLong(RequestRefused):
    """It does not fit the model's context window."""


class ConnectionModel(WrapperModel):
    """The model of the Airflow connection `conn_id`.

    :param conn_id: see `include.ai.connection` for what the connection holds.
    :param usage_recorder: gets every answered call.
    :param at_once: the most calls in flight.
    """

    def __init__(self, conn_id: str, usage_recorder: UsageRecorder | None = None, at_once: int = MOST_CONNECTIONS):
        Model.__init__(self)  # WrapperModel's own would build the model now
        self.conn_id = conn_id
        self.usage_recorder = usage_recorder or UsageRecorder()
        self._at_once = at_once
        self._built: tuple[asyncio.AbstractEventLoop | None, Model] | None = None

    def __repr__(self) -> str:
        return f"ConnectionModel({self.conn_id!r})"

    @cached_property
    def source(self) -> ModelSource:
        """What the connection holds."""
        return model_source(self.conn_id, DEFAULT_MODEL)

    @cached_property
    def rate_limit(self) -> RateLimit:
        """This task's share of the account's limits."""
        from airflow.sdk import get_current_context

        try:
            slots = get_current_context()["task"].pool_slots
        except RuntimeError:  # outside a task
            slots = 1
        return RateLimit(*self.source.account.share(slots), at_once=self._at_once)

    @property
    def wrapped(self) -> Model:  # type: ignore[override]
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        # An HTTP client's connections belong to the event loop in which they were made.
        if self._built is None or loop not in (None, self._built[0]):
            self._built = (loop, self._build())
        return self._built[1]

    @property
    def _hooks(self) -> dict[str, list[Any]]:
        hooks = self.rate_limit.hooks
        return {**hooks, "response": [*hooks.get("response", []), stay_on_host]}

    def _build(self) -> Model:
        from httpx2 import AsyncClient, Limits, Timeout
        from pydantic_ai.exceptions import UserError
        from pydantic_ai.models import infer_model

        http_client = AsyncClient(
            timeout=Timeout(CALL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            limits=Limits(max_connections=MOST_CONNECTIONS, max_keepalive_connections=KEPT_CONNECTIONS),
            event_hooks=self._hooks,
            follow_redirects=True,
        )
        try:
            return infer_model(
                self.source.model_id, provider_factory=lambda name: self.source.provider(name, http_client)
            )
        except (UserError, ValueError, ImportError, TypeError) as error:
            raise AirflowFailException(
                f"Connection {self.conn_id!r} names the model {self.source.model_id!r}, "
                f"which cannot be built: {shown_text(error, self.source.secrets)} Set the connection's extra "
                '{"model": "<provider>:<name>"}, its host (base URL) and its password (API key).'
            ) from None

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Call the model once; wait as long as it asks to, count what it used.

        :raises AirflowFailException: no retry of the task can mend it.
        :raises AirflowException: a later try may succeed.
        """
        from pydantic_ai.exceptions import ModelAPIError

        log.debug("Messages: %s", messages)
        settings: Any = {"timeout": CALL_TIMEOUT_S, **(model_settings or {})}
        started = time.monotonic()
        waits: list[float] = []
        while True:
            try:
                async with self.rate_limit.places:
                    response = await self.wrapped.request(messages, settings, model_request_parameters)
                break
            except ModelAPIError as error:
                wait = error.retry_after or 0
                failure = self._task_error(error)
                final = isinstance(failure, AirflowFailException) or len(waits) == MOST_WAITS
                if final or not 0 < wait <= LONGEST_WAIT_S - sum(waits):
                    log.debug("The provider's own words: %s", error)  # they may quote the key or the prompt
                    raise failure from None
                log.info("Connection %r: asked to wait %.0f s before the next call.", self.conn_id, wait)
                waits.append(wait)
                await asyncio.sleep(wait)
        _clean(response, is_json=model_request_parameters.output_object is not None)
        log.debug("Answer: %s", response)
        self.usage_recorder.record(response, time.monotonic() - started, self.source.cost(response))
        return response

    def _task_error(self, error: Exception) -> AirflowException:
        from pydantic_ai import exceptions as e

        where = f"Connection {self.conn_id!r} (model {self.model_name!r} at {shown_url(self.base_url)})"
        said = self._provider_says(error)
        match error:
            case e.ModelHTTPError(status_code=status) if status == MISDIRECTED:
                return AirflowFailException(
                    f"{where}: the server redirects to another host. Set the connection's host to the URL of the "
                    "server that answers."
                )
            case e.ModelAuthenticationError():
                return AirflowFailException(
                    f"{where}: the key was refused. Set the connection's password (or OPENAI_API_KEY) "
                    f"to a key that may use this model. {said}"
                )
            case e.ModelNotFoundError():
                return AirflowFailException(
                    f'{where}: no such model or URL. Set the connection\'s extra {{"model": ...}} or its host. {said}'
                )
            case e.ModelQuotaExceededError():
                return AirflowFailException(f"{where}: the account's quota is used up. {said}")
            case e.ModelContextWindowExceededError():
                return TextTooLong(f"{where}: the text is too long for the model. {said}")
            case e.ModelRequestRejectedError():
                return RequestRefused(f"{where}: the request is invalid. {said}")
            case e.ModelTimeoutError():
                return AirflowException(f"{where}: no answer within {CALL_TIMEOUT_S:.0f} s.")
            case e.ModelConnectionError():
                return AirflowException(
                    f"{where}: the server cannot be reached. Is it running, and is the connection's host right?"
                )
            case _:
                return AirflowException(f"{where}: the call failed. {said}")

    def _provider_says(self, error: Exception) -> str:
        """Status and code of a provider's error, which may quote what it was sent."""
        parts = [
            f"{name} {shown_text(value, self.source.secrets, LONGEST_NAME)}"
            for name in ("status_code", "provider_error_code", "provider_error_type")
            if (value := getattr(error, name, None))
        ]
        return f"(provider: {', '.join(parts)})" if parts else ""


def _clean(response: ModelResponse, is_json: bool) -> None:
    """Free an answer of characters that neither pydantic nor Airflow's database takes: it is paid already.

    :param is_json: whether a text that the model wrote is JSON, in which such characters may be escaped.
    """
    from pydantic_ai.messages import TextPart, ThinkingPart, ToolCallPart

    for part in response.parts:
        match part:
            case TextPart() | ThinkingPart():
                part.content = clean_json(part.content) if is_json else clean_text(part.content)
            case ToolCallPart(args=str(arguments)):
                part.args = clean_json(arguments)
            case ToolCallPart(args=dict(arguments)):
                part.args = json.loads(clean_json(json.dumps(arguments)))
