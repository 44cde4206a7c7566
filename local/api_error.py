"""Errors of the local servers, in the shape that OpenAI clients read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

log = logging.getLogger(__name__)


class ApiError(Exception):
    """A request that can't be served, with the HTTP status and the field at fault.

    :param message: what is wrong, in words for the caller.
    :param param: path of the field at fault, for example ``messages.0.content``, or None.
    :param code: machine-readable reason, for example ``model_not_found``, or None.
    :param status: HTTP status code.
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

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """Return the HTTP response."""
        return JSONResponse(self.body(), self.status, headers)


def answer_errors(app: FastAPI) -> None:
    """Give every error an answer in OpenAI's shape, and a line in the log."""
    for kind in (ApiError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _respond)


async def _respond(request: Request, error: Exception) -> JSONResponse:
    found = _as_api_error(request, error)
    # The path is not decoded, as line breaks would forge log lines.
    log.info("%s %s: status %d", request.method, request.scope["raw_path"].decode("latin-1"), found.status)
    return found.response()


def _as_api_error(request: Request, error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(f"{request.method} {request.url.path}: {error.detail}", status=error.status_code)
    if not isinstance(error, RequestValidationError):
        return ApiError("The server failed to answer; its log has the reason.", status=500)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError("The request body is not valid JSON.", code="invalid_json")
    param = ".".join(str(step) for step in first["loc"][1:]) or None
    message = f"{param or 'body'}: {first['msg'].removeprefix('Value error, ')}"
    return ApiError(message, param=param, code="invalid_value")
