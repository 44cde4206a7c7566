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
from .engine import SAMPLING, Completion, Engine
from .schema import Schema, schema_in_text
from .wire import ChatRequest, ResponseFormat, Tool
from .writer import Writer

CHAT_MODEL = "smollm2-135m-instruct"
OUTPUT_TOOL = "final_result"
ANSWER_TOKENS = 120
# An empty system message: with none the model drifts, with "You are a helpful assistant" it gets facts wrong.
DEFAULT_SYSTEM = " "


@dataclass(frozen=True)
class Answer(Completion):
    """What the model wrote; ``call`` names the function if it is a call."""

    call: str | None = None


class Chat:
    """Answers chat requests with one engine, one after the other; safe from several threads.

    Two at once would both be late: llama.cpp needs as long for two tokens of two answers decoded together as for one
    after the other (measured: 26 ms of CPU per token alone, 28 for two at once, 24 for three).
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = threading.Lock()

    def reply(self, request: ChatRequest) -> dict[str, Any]:
        """Return the body of a ``chat.completion``.

        :raises ApiError: if the request can't be answered; the message names the field.
        """
        with self._turn:
            return _completion(self._answer(request, from_messages(request.messages)))

    def _answer(self, request: ChatRequest, conversation: Conversation) -> Answer:
        if tools := _tools_in_turn(request):
            return self._call(request, conversation, tools)
        if request.response_format and request.response_format.type != "text":
            return self._structured(request, conversation, _requested_schema(request, request.response_format))
        return self._plain(request, conversation)

    def _call(self, request: ChatRequest, conversation: Conversation, tools: list[Tool]) -> Answer:
        schemas = [_object_schema(request, tool) for tool in tools]
        meanings = [f"{tool.function.name}: {tool.function.description or ''}" for tool in tools]
        hint = "\n".join(["Tools:", *(" ".join(meaning.split())[:160] for meaning in meanings)])
        index = Chooser(self._engine, conversation.with_hint(hint)).closest('{"tool": "', meanings)[0]
        return self._structured(request, conversation, schemas[index], tools[index].function.name)

    def _structured(
        self, request: ChatRequest, conversation: Conversation, schema: Schema, call: str | None = None
    ) -> Answer:
        spoken = call is None or call.startswith(OUTPUT_TOOL)  # arguments of a function are terms, not sentences
        writer = Writer(self._engine, conversation, schema, spoken, request.limit, _sampling(request))
        text = json.dumps(writer.write(), ensure_ascii=False)
        prompt_tokens, tokens = (self._engine.count(part) for part in (conversation.prompt(), text))
        if request.limit is None or tokens <= request.limit:
            return Answer(text, prompt_tokens, tokens, False, call)
        return Answer(text[: len(text) * request.limit // tokens], prompt_tokens, request.limit, True, call)

    def _plain(self, request: ChatRequest, conversation: Conversation) -> Answer:
        if conversation.turns[0][0] != "system":
            conversation = conversation.with_hint(DEFAULT_SYSTEM)
        limit = request.limit or ANSWER_TOKENS
        found = self._engine.complete(conversation.prompt(), limit, **_sampling(request))
        return Answer(found.text.strip(), found.prompt_tokens, found.tokens, found.cut)


def _tools_in_turn(request: ChatRequest) -> list[Tool]:
    """Return the tools of which one must be called now; empty if the answer is text."""
    tools, choice = request.tools or [], request.tool_choice
    if choice == "required" and not tools:
        message = "tool_choice is 'required', but there are no tools."
        raise ApiError(message, param="tool_choice", code="invalid_value")
    if choice == "none":
        return []
    output = [tool for tool in tools if tool.function.name.startswith(OUTPUT_TOOL)]
    functions = [tool for tool in tools if tool not in output]
    if tool_result_is_back(request.messages, {tool.function.name for tool in output}):
        return output or (functions if choice == "required" else [])
    return functions or output


def _sampling(request: ChatRequest) -> dict[str, Any]:
    """Return what the client asked for; random after a rejection, as else the same answer would come back."""
    rejected = rejections(request.messages)
    temperature = request.temperature
    if temperature is None:
        temperature = 0.7 if rejected else SAMPLING["temperature"]
    return {"temperature": temperature, "seed": SAMPLING["seed"] + rejected}


def _object_schema(request: ChatRequest, tool: Tool) -> Schema:
    place = f"tools.{(request.tools or []).index(tool)}.function.parameters"
    schema = Schema(tool.function.parameters, place)
    if schema.node.get("type") != "object":
        raise schema.error("The parameters of a function must be a JSON schema of type object.")
    return schema


def _requested_schema(request: ChatRequest, wanted: ResponseFormat) -> Schema:
    place = "response_format.json_schema"
    if wanted.json_schema:
        return Schema(wanted.json_schema.schema_, f"{place}.schema")
    if wanted.type == "json_schema":
        raise ApiError(f"{place}: Field required", param=place, code="invalid_value")
    found = schema_in_text("\n".join(m.text for m in request.messages if m.role in ("system", "developer")))
    if not found:
        message = "The type 'json_object' needs a JSON schema in the system message."
        raise ApiError(message, param="response_format.type", code="invalid_value")
    return Schema(found, "messages")


def _completion(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    reason = "stop"
    if answer.call:
        function = {"name": answer.call, "arguments": answer.text}
        call = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
        message |= {"content": None, "tool_calls": [call]}
        reason = "tool_calls"
    reason = "length" if answer.cut else reason
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": CHAT_MODEL,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.tokens,
            "total_tokens": answer.prompt_tokens + answer.tokens,
        },
    }
