"""What a client may send to ``/v1/chat/completions`` and ``/v1/embeddings``, checked.

Fields that this server doesn't know are ignored, as OpenAI's own do for most of them. What it knows but
can't do (streams, pictures, several choices) is refused with the name of the field.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator

from local.api_error import ApiError

Body = TypeVar("Body", bound=BaseModel)
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


class TextPart(BaseModel):
    """One piece of a message; only text is understood."""

    type: Literal["text"]
    text: str


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
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _only_text_parts(cls, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text":
                raise ValueError(f"only content parts of type 'text' are supported, not {kind!r}")
        return content

    @property
    def text(self) -> str:
        """The content as one string, empty if there is none."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class Function(BaseModel):
    """A function that the model may call; ``parameters`` is a JSON schema of type object."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})


class Tool(BaseModel):
    """A tool on offer; functions are the only kind."""

    type: Literal["function"]
    function: Function


class ChosenFunction(BaseModel):
    """The name inside an explicit ``tool_choice``."""

    name: str


class ToolChoice(BaseModel):
    """An explicit ``tool_choice``."""

    type: Literal["function"]
    function: ChosenFunction


class NamedSchema(BaseModel):
    """The ``json_schema`` of a ``response_format``."""

    name: str = "response"
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None


class ResponseFormat(BaseModel):
    """The form of an answer that is no tool call."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class ChatRequest(BaseModel):
    """Body of ``POST /v1/chat/completions``."""

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
    stream: bool | None = None
    n: int | None = None

    @field_validator("stream")
    @classmethod
    def _no_stream(cls, stream: bool | None) -> bool | None:
        if stream:
            raise ValueError("streaming is not supported, leave it out or send false")
        return stream

    @field_validator("n")
    @classmethod
    def _one_choice(cls, n: int | None) -> int | None:
        if n not in (None, 1):
            raise ValueError("only one choice per request is supported")
        return n

    @property
    def limit(self) -> int | None:
        """The client's own bound on answer tokens, if it sent one."""
        return self.max_completion_tokens or self.max_tokens


class EmbeddingRequest(BaseModel):
    """Body of ``POST /v1/embeddings``; token arrays as input are refused."""

    model: str
    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=2048)]
    )
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
