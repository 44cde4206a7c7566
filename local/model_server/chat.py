"""From a chat request to its answer: which form the answer must have, and who writes it."""

import json
import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any

from local.api_error import ApiError

from .choice import Chooser
from .conversation import Conversation, from_messages, rejections, tool_result_is_back
from .engine import SAMPLING, Engine
from .hints import describe_fields, describe_tools, schema_in_text
from .schema import Node, Schema
from .wire import ChatRequest, ResponseFormat, Tool, ToolChoice
from .writer import Writer

CHAT_MODEL = "smollm2-135m-instruct"
OUTPUT_TOOL = "final_result"
ANSWER_TOKENS = 120
# An empty system message: with none the model drifts, with "You are a helpful assistant" it gets facts wrong.
DEFAULT_SYSTEM = " "


@dataclass(frozen=True)
class Answer:
    """What the model wrote, and whether a token limit cut it; ``call`` names the function if it is a call."""

    text: str
    prompt_tokens: int
    tokens: int
    cut: bool
    call: str | None = None


class Chat:
    """Answers chat requests with one engine, one after the other; safe from several threads.

    Two at once would be slower in sum: an answer is written in many steps that share their prompt's start, and
    would lose it from the engine's slots to the other's (measured: 0.4 s per answer in turn, 0.75 s side by side).
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._chooser = Chooser(engine)
        self._turn = threading.Lock()

    def reply(self, request: ChatRequest) -> dict[str, Any]:
        """The body of a ``chat.completion``.

        :raises ApiError: if the request can't be answered; the message names the field.
        """
        with self._turn:
            return _completion(self._answer(request))

    def _answer(self, request: ChatRequest) -> Answer:
        conversation = from_messages(request.messages)
        tools = self._tools_in_turn(request)
        if tools:
            return self._call(request, conversation, tools)
        if request.response_format and request.response_format.type != "text":
            return self._structured(request, conversation, _requested_schema(request, request.response_format))
        return self._plain(request, conversation)

    def _tools_in_turn(self, request: ChatRequest) -> list[Tool]:
        """The tools of which one must be called now; empty if text is due."""
        tools = request.tools or []
        choice = request.tool_choice
        if isinstance(choice, ToolChoice):
            named = [tool for tool in tools if tool.function.name == choice.function.name]
            if not named:
                raise ApiError(
                    f"tool_choice names the function {choice.function.name!r}, which is not among the tools.",
                    param="tool_choice",
                    code="invalid_value",
                )
            return named
        if choice == "required" and not tools:
            raise ApiError(
                "tool_choice is 'required', but there are no tools.",
                param="tool_choice",
                code="invalid_value",
            )
        if choice == "none":
            return []
        output = [tool for tool in tools if tool.function.name.startswith(OUTPUT_TOOL)]
        functions = [tool for tool in tools if tool not in output]
        if tool_result_is_back(request.messages, {tool.function.name for tool in output}):
            return output or (functions if choice == "required" else [])
        return functions or output

    def _call(self, request: ChatRequest, conversation: Conversation, tools: list[Tool]) -> Answer:
        schemas = [
            _object_schema(tool, f"tools.{(request.tools or []).index(tool)}.function.parameters") for tool in tools
        ]
        names = [tool.function.name for tool in tools]
        meanings = [f"{tool.function.name}: {tool.function.description or ''}" for tool in tools]
        index = self._chooser.closest(conversation.with_hint(describe_tools(tools)), '{"tool": "', meanings)[0]
        return self._structured(request, conversation, schemas[index], names[index])

    def _structured(
        self, request: ChatRequest, conversation: Conversation, schema: Schema, call: str | None = None
    ) -> Answer:
        if conversation.turns[0][0] != "system":  # next to the client's own words, the hint drowns the user's text
            conversation = conversation.with_hint(describe_fields(schema))
        prompt_tokens = self._engine.count(conversation.prompt())
        sampling = _sampling(request)
        spoken = call is None or call.startswith(OUTPUT_TOOL)  # arguments of a function are terms, not sentences
        writer = Writer(self._engine, self._chooser, conversation, schema, spoken, request.limit, sampling)
        text = json.dumps(writer.write(), ensure_ascii=False)
        tokens = self._engine.count(conversation.prompt(text)) - prompt_tokens
        if request.limit is None or tokens <= request.limit:
            return Answer(text, prompt_tokens, tokens, False, call)
        return Answer(text[: len(text) * request.limit // tokens], prompt_tokens, request.limit, True, call)

    def _plain(self, request: ChatRequest, conversation: Conversation) -> Answer:
        if conversation.turns[0][0] != "system":
            conversation = conversation.with_hint(DEFAULT_SYSTEM)
        stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
        found = self._engine.complete(
            conversation.prompt(),
            request.limit or ANSWER_TOKENS,
            stop=stop,
            **_sampling(request),
        )
        return Answer(found.text.strip(), found.prompt_tokens, found.tokens, found.cut)


def _sampling(request: ChatRequest) -> dict[str, Any]:
    """What the client asked for; after a rejection the answer is drawn anew, or it would come back unchanged."""
    rejected = rejections(request.messages)
    seed = (SAMPLING["seed"] if request.seed is None else request.seed) + rejected
    asked = {"temperature": request.temperature, "top_p": request.top_p}
    given = {key: value for key, value in asked.items() if value is not None}
    return ({"temperature": 0.7} if rejected else {}) | given | {"seed": seed % 2**31}


def _object_schema(tool: Tool, param: str) -> Schema:
    schema = Schema(tool.function.parameters, param)
    if schema.kind(schema.resolve(schema.root)) not in ("object", "any"):
        raise schema.error("The parameters of a function must be a JSON schema of type object.")
    return Schema({"type": "object", **schema.root}, param) if not schema.root.get("$ref") else schema


def _requested_schema(request: ChatRequest, wanted: ResponseFormat) -> Schema:
    if wanted.type == "json_schema":
        named = wanted.json_schema
        if named is None:
            raise ApiError(
                "response_format.json_schema: Field required",
                param="response_format.json_schema",
                code="invalid_value",
            )
        return Schema(named.schema_, "response_format.json_schema.schema")
    told: Node | None = schema_in_text("\n".join(m.text for m in request.messages if m.role in ("system", "developer")))
    return Schema(told or {"type": "object"}, "messages" if told else "response_format")


def _completion(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    reason = "stop"
    if answer.call:
        function = {"name": answer.call, "arguments": answer.text}
        call = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
        message |= {"content": None, "tool_calls": [call]}
        reason = "tool_calls"
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": CHAT_MODEL,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": "length" if answer.cut else reason,
            }
        ],
        "usage": {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.tokens,
            "total_tokens": answer.prompt_tokens + answer.tokens,
        },
    }
