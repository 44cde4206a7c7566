"""What a client may send to ``/v1/chat/completions`` and ``/v1/embeddings``.

Unknown fields are ignored, as OpenAI ignores most of them. What this server knows but can't do (streams, pictures,
several choices) is refused with the name of the field.
"""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
Text = Annotated[str, Field(min_length=1)]


def _joined(content: Any) -> Any:
    """Return the text of a message's content, which may be missing or come in parts."""
    if not isinstance(content, list):
        return "" if content is None else content
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"only content parts of type 'text' are supported, not {kind!r}")
    return "".join(part["text"] for part in content)


class CalledFunction(BaseModel):
    """Name and JSON arguments of a call that the assistant made earlier."""

    name: str
    arguments: str = "{}"


class ToolCall(BaseModel):
    """A call that the assistant made earlier in the conversation."""

    id: str = ""
    function: CalledFunction


class Message(BaseModel):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    text: Annotated[str, BeforeValidator(_joined)] = Field(default="", alias="content")
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Function(BaseModel):
    """A function that the model may call; ``parameters`` is a JSON schema of type object."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] = {"type": "object"}


class Tool(BaseModel):
    """A tool on offer; functions are the only kind."""

    type: Literal["function"]
    function: Function


class NamedSchema(BaseModel):
    """The ``json_schema`` of a ``response_format``."""

    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    """The form of an answer that is not a tool call."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class ChatRequest(BaseModel):
    """Body of ``POST /v1/chat/completions``; streams and several choices are refused."""

    model: str
    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | None = None
    response_format: ResponseFormat | None = None
    limit: int | None = Field(default=None, ge=1, validation_alias=AliasChoices("max_completion_tokens", "max_tokens"))
    temperature: float | None = Field(default=None, ge=0, le=2)
    stream: Literal[False] | None = None
    n: Literal[1] | None = None


class EmbeddingRequest(BaseModel):
    """Body of ``POST /v1/embeddings``; token arrays as input are refused."""

    model: str
    input: Annotated[
        list[Text],
        BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
        Field(min_length=1, max_length=2048),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Literal[256] | None = None
