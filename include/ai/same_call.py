"""When two calls of a model are the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from pydantic_ai.messages import ModelMessage, ModelRequest, TextContent
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_core import to_jsonable_python

# Fields of a message's part that differ between tries, or never reach a model.
NOT_ASKED = {"timestamp", "id", "metadata", "tool_call_id", "provider_name", "provider_details"}


def what_decides(
    messages: Sequence[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
) -> bytes:
    """Return everything that decides an answer besides the connection, the same in each try of a task."""
    ids: dict[Any, int] = {}  # of tool calls, some of which have a new id at each try
    conversation = [
        (
            message.kind,
            message.instructions if isinstance(message, ModelRequest) else None,
            [_part(part, ids) for part in message.parts],
        )
        for message in messages
    ]
    form = parameters.output_object
    tools = [
        [(tool.name, tool.description, tool.parameters_json_schema, tool.strict) for tool in some]
        for some in (parameters.function_tools, parameters.output_tools)
    ]
    outputs = (
        parameters.output_mode,
        form and (form.name, form.description, form.json_schema, form.strict),
        parameters.allow_text_output,
        parameters.allow_image_output,
        parameters.prompted_output_template,
    )
    everything = [conversation, settings, tools, parameters.native_tools, outputs]
    plain = to_jsonable_python(everything, bytes_mode="base64", serialize_unknown=True)
    return json.dumps(plain, sort_keys=True).encode()


def _part(part: Any, ids: dict[Any, int]) -> dict[str, Any]:
    found = {field.name: getattr(part, field.name) for field in fields(part) if field.name not in NOT_ASKED}
    if hasattr(part, "tool_call_id"):
        found["call"] = ids.setdefault(part.tool_call_id, len(ids))
    if isinstance(content := found.get("content"), list):
        found["content"] = [each.content if isinstance(each, TextContent) else each for each in content]
    return found
