"""The one error type of the local servers, in the shape that OpenAI clients read."""

from typing import Any


class ApiError(Exception):
    """A request that can't be served, with the HTTP status and the field at fault.

    :param message: what is wrong, in words for the caller.
    :param param: path of the field at fault, for example ``messages.0.content``, or None.
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
