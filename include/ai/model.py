"""A pydantic-ai model that is an Airflow connection.

It costs nothing at parse: the connection is read and the real model built at the first call. It is the one layer that
repeats a call, its usage goes to XCom, and every error says which connection it came from, what to set, and whether a
retry of the task may help.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

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

try:
    from include.ai import layers
except ImportError:  # a copied pattern may lack it
    layers = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from include.ai.rate_limit import RateLimit
    from include.ai.usage import UsageRecorder

# Used where only OPENAI_API_KEY is set: the cheapest current model in the openai package's list.
DEFAULT_MODEL = "openai-chat:gpt-6-luna"

# Seconds before a call is repeated, each shortened at random by up to a quarter so that calls do not stay in step.
PAUSES_S = (0.5, 1.0)
# Where the provider says how long to wait (`Retry-After`): the most calls, and seconds of waiting in all.
MOST_CALLS = 9
LONGEST_WAIT_S = 600.0
UNKNOWN_TOOL = "unknown_tool"

log = logging.getLogger(__name__)


class RequestRefused(AirflowFailException):
    """The provider refuses what was asked, and would again: it is invalid, too long, or against its rules."""


class TextTooLong(RequestRefused):
    """It does not fit the model's context window."""


class ConnectionModel(WrapperModel):
    """The model of the Airflow connection `conn_id`.

    :param conn_id: see `include.ai.connection` for what the connection holds.
    :param usage_recorder: gets every answered call.
    :param budget_usd: what a task may spend on it, in US dollars; None for no limit but the connection's.
    """

    # The limit that the calls keep; None for that of the connection, if it states one.
    rate_limit: RateLimit | None = None

    def __init__(
        self, conn_id: str, usage_recorder: UsageRecorder | None = None, budget_usd: float | None = None
    ) -> None:
        Model.__init__(self)  # WrapperModel's own would build the model now
        self.conn_id = conn_id
        self.usage_recorder = usage_recorder
        self.budget_usd = budget_usd
        self.longest_wait_s = LONGEST_WAIT_S
        self._built: tuple[asyncio.AbstractEventLoop | None, Model] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.conn_id!r})"

    @cached_property
    def source(self) -> connection.ModelSource:
        """What the connection holds."""
        return connection.read_model_source(self.conn_id, DEFAULT_MODEL)

    @property
    def models(self) -> list[ConnectionModel]:
        """The models that may answer: this one."""
        return [self]

    @property
    def wrapped(self) -> Model:  # type: ignore[override]
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        # An HTTP client's connections belong to the event loop in which they were made.
        if self._built is None or loop not in (None, self._built[0]):
            hooks = layers.http_hooks(self.source, self.rate_limit) if layers else {}
            self._built = (loop, self.source.build(infer_model, hooks))
        return self._built[1]

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Call the model, repeat the call while that may help, and record what the answer used.

        :raises AirflowFailException: no retry of the task can help.
        :raises AirflowException: a later try may succeed.
        """
        log.debug("Messages: %s", messages)
        call = await layers.begin(self, messages, model_request_parameters) if layers else None
        ours = {"timeout": connection.CALL_TIMEOUT_S, **(model_settings or {}), "max_retries": 0}
        settings: Any = {key: ours[key] for key in ours if key not in self.wrapped.unsupported_settings}
        calls, waited = 0, 0.0
        while True:
            try:
                response = await self.wrapped.request(messages, settings, model_request_parameters)
                break
            except e.ModelAPIError as error:
                calls += 1
                failure = self._task_error(error)
                is_final = isinstance(failure, AirflowFailException)
                wait = None if is_final else _wait(error, calls, self.longest_wait_s - waited)
                if call:
                    call.refused(error, is_last=wait is None)
                if wait is None:
                    log.debug("The provider's own words: %s", error)  # they may quote the key or the prompt
                    raise failure from None
            if wait > max(PAUSES_S):
                log.info("Connection %r: asked to wait %.0f s before the next call.", self.conn_id, wait)
            waited += wait
            await asyncio.sleep(wait)
        _clean(response, model_request_parameters)
        log.debug("Answer: %s", response)
        if call:
            await call.answered(response)
        return response

    def _task_error(self, error: e.ModelAPIError) -> AirflowException:
        """Return what the task fails with if this error was the last."""
        kind: type[AirflowException] = AirflowFailException
        match error:
            case e.ModelAuthenticationError():
                what = "set its password (or OPENAI_API_KEY) to a key for this model: the key was refused."
            case e.ModelNotFoundError():
                what = 'set its extra {"model": ...} or its host: there is no such model or URL.'
            case e.ModelQuotaExceededError():
                what = "the account's quota is used up. Raise it, or name fallback_conn_ids in the extra."
            case e.ModelContextWindowExceededError():
                kind, what = TextTooLong, "the text is too long for the model."
            case e.ModelHTTPError(status_code=status) if status == MISDIRECTED:
                what = "set its host to the server that answers: this one redirects to another host."
            case e.ModelRequestRejectedError():
                kind, what = RequestRefused, "the request is invalid."
            case e.ModelHTTPError(status_code=status) if is_refusal_status(status):
                kind, what = RequestRefused, "the request is invalid."
            case e.ModelTimeoutError():
                kind, what = AirflowException, f"no answer within {connection.CALL_TIMEOUT_S:.0f} s."
            case e.ModelConnectionError():
                kind = AirflowException
                what = "check its host, and that the server runs: it cannot be reached."
            case _:
                kind, what = AirflowException, "the call failed."
        # The provider's own words may quote what it was sent; its codes do not.
        said = [
            f"{name} {shown_text(value, self.source.secrets, LONGEST_NAME)}"
            for name in ("status_code", "provider_error_code", "provider_error_type")
            if (value := getattr(error, name, None))
        ]
        where = ", ".join([f"model {self.model_name!r} at {shown_url(self.base_url)}", *said])
        return kind(f"Connection {self.conn_id!r}: {what} ({where})")


def connection_model(
    conn_id: str,
    make: Callable[[str], ConnectionModel] | None = None,
    budget_usd: float | None = None,
    reuse: str | timedelta = "retries",
) -> ConnectionModel:
    """Return the model of the connection `conn_id`, with the layers that are there.

    :param make: makes the model of one connection, if it is not to be a plain one.
    :param budget_usd: what a task may spend on each connection.
    :param reuse: who gets an answer that is paid already: see `include.ai.llm_kwargs`.
    :raises ValueError: one of these has no meaning, or the layer that it needs is not there.
    """
    if layers:
        return layers.layered_model(conn_id, make, budget_usd, reuse)
    if budget_usd is not None or reuse not in ("retries", "try"):
        raise ValueError("budget_usd needs the layer spend, and reuse the layer reuse.")
    return (make or ConnectionModel)(conn_id)


def _wait(error: e.ModelAPIError, calls: int, patience: float) -> float | None:
    """Return the seconds until the next call, after so many calls; None if there is none.

    :param patience: how many seconds the provider may still ask to wait.
    """
    if asked := _asked_wait(error):
        return asked if calls < MOST_CALLS and asked <= patience else None
    jitter = random.uniform(0.75, 1)  # noqa: S311 (no secret)
    return PAUSES_S[calls - 1] * jitter if calls <= len(PAUSES_S) else None


def _asked_wait(error: e.ModelAPIError) -> float:
    """Return the seconds that the provider asks to wait; 0 if it does not ask."""
    if error.retry_after is None and isinstance(error, e.ModelHTTPError) and error.headers:
        with suppress(ValueError):  # pydantic-ai reads whole seconds only
            return max(0.0, float(error.headers.get("retry-after", 0)))
    return error.retry_after or 0.0


def _clean(response: ModelResponse, asked: ModelRequestParameters) -> None:
    """Free an answer, which is paid already, of characters that neither pydantic nor Airflow's database takes.

    A tool that the model was not given loses its name, which may be any text, and which SDKs log.
    """
    is_json = asked.output_object is not None  # in which such characters may be escaped
    tools = {tool.name for tool in (*asked.function_tools, *asked.output_tools)}
    for part in response.parts:
        if isinstance(part, ToolCallPart) and part.tool_name not in tools:
            part.tool_name = UNKNOWN_TOOL
        match part:
            case TextPart() | ThinkingPart():
                part.content = clean_json(part.content) if is_json else clean_text(part.content)
            case ToolCallPart(args=str(arguments)):
                part.args = clean_json(arguments)
            case ToolCallPart(args=dict(arguments)):
                part.args = json.loads(clean_json(json.dumps(arguments)))
