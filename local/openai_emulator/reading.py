"""The reading of requests."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, StringConstraints, ValidationError
from starlette.requests import Request

from local.api_error import ApiError

LARGEST_BODY = 4 * 1024 * 1024

# What a job or a batch may carry of the caller's.
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=64)],
        Annotated[str, StringConstraints(max_length=512, strict=True)],
    ],
    Field(max_length=16),
]

Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: Request) -> bytes:
    """The request's body; refused when it is larger than `LARGEST_BODY`."""
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > LARGEST_BODY:
            raise ApiError(f"The request body is larger than {LARGEST_BODY} bytes.", code="too_large", status=413)
    return bytes(received)


async def parse(kind: type[Body], request: Request) -> Body:
    """The request's JSON body, checked."""
    try:
        return kind.model_validate_json(await read_body(request))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(str(step) for step in first["loc"]) or None
        code = "invalid_json" if first["type"] == "json_invalid" else None
        reason = first["msg"].removeprefix("Value error, ")
        raise ApiError(f"{param}: {reason}" if param else reason, param=param, code=code) from None


def query_int(request: Request, name: str, default: int, most: int) -> int:
    """A number from 1 to `most` out of the query string."""
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= most):
        raise ApiError(f"{name} must be a whole number from 1 to {most}.", param=name)
    return int(text)
