"""What a client may send to ``/v1/chat/completions`` and ``/v1/embeddings``, checked.

Fields that this server doesn't know are ignored, as OpenAI's own do for most of them. What it knows but
can't do (streams, pictures, several choices) is refused with the name of the field.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from local.api_error import ApiError

Body = TypeVar("Body", bound=BaseModel)
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
Text = Annotated[str, Field(min_length=1)]


def _joined(content: Any) -> Any:
    """The text of a message's content, which may come in parts."""
    if not isinstance(content, list):
        return content or "" if isinstance(content, str | None) else content
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
    parameters: dict[str, Any] = {}


class Tool(BaseModel):
    """A tool on offer; functions are the only kind."""

    type: Literal["function"]
    function: Function


class ToolChoice(BaseModel):
    """An explicit ``tool_choice``."""

    type: Literal["function"]
    function: CalledFunction


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
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    response_format: ResponseFormat | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: Literal[False] | None = None
    n: Literal[1] | None = None

    @property
    def limit(self) -> int | None:
        """The client's own bound on answer tokens, if it sent one."""
        return self.max_completion_tokens or self.max_tokens


class EmbeddingRequest(BaseModel):
    """Body of ``POST /v1/embeddings``; token arrays as input are refused."""

    model: str
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Literal[256] | None = None


def parse(kind: type[Body], body: bytes) -> Body:
    """Read a request body as ``kind``.

    :raises ApiError: status 400, naming the first field that is wrong.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        first = max((e for e in errors if e["loc"][:1] == errors[0]["loc"][:1]), key=lambda e: len(_path(e["loc"])))
        if first["type"] == "json_invalid":
            raise ApiError("The request body is not valid JSON.", code="invalid_json") from None
        param = ".".join(_path(first["loc"])) or None
        message = first["msg"].removeprefix("Value error, ")
        raise ApiError(f"{param or 'body'}: {message}", param=param, code="invalid_value") from None


def _path(location: tuple[int | str, ...]) -> list[str]:
    """The steps of an error's location that stand in the body, without pydantic's names for branches of a union."""
    branches = ("str", "constrained-str", "ToolChoice")
    return [str(step) for step in location if isinstance(step, int) or not ("[" in step or step in branches)]
