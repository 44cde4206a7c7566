"""Which prompt a call belongs to: the ledger and evaluations use the same fingerprint for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_ai.messages import ModelMessage, SystemPromptPart

from include.common.fingerprint import fingerprint

if TYPE_CHECKING:
    from pydantic_ai.models import ModelRequestParameters

_last_prompt: tuple[ModelRequestParameters, list[str | None], str] | None = None


def prompt_of(messages: list[ModelMessage], parameters: ModelRequestParameters) -> str:
    """Return the fingerprint of a prompt without its data: instructions, form of the answer, and tools."""
    instructions = [
        part.content for message in messages for part in message.parts if isinstance(part, SystemPromptPart)
    ] + [getattr(message, "instructions", None) for message in messages[:1]]
    global _last_prompt  # the calls of a task mostly have the same prompt
    if _last_prompt and _last_prompt[0] is parameters and _last_prompt[1] == instructions:
        return _last_prompt[2]
    tools = [
        (tool.name, tool.description, tool.parameters_json_schema)
        for tool in (*parameters.function_tools, *parameters.output_tools)
    ]
    form = parameters.output_object and parameters.output_object.json_schema
    _last_prompt = (parameters, instructions, fingerprint(instructions, tools, form))
    return _last_prompt[2]
