"""The one error type of the emulator, in the shape that OpenAI clients read, and the reading of request bodies."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

LARGEST_BODY = 4 * 1024 * 1024

Body = TypeVar("Body", bound=BaseModel)


class ApiError(Exception):
    """A request that can't be served. As in `local.model_server`, whose import would load the language model.

    :param message: what is wrong, in words for the caller.
    :param param: path of the field at fault, or None.
    :param code: machine-readable reason, for example ``model_not_found``, or None.
    :param status: HTTP status code, 400 unless told.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status

    def body(self) -> dict[str, Any]:
        """Return ``{"error": {"message", "type", "param", "code"}}``."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


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
