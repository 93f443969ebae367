"""Errors in OpenAI's form: a message, a type, the field that is to blame, a code."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from porter.runtime import PorterRuntimeError
from porter.runtime.logger import init_logger
from porter.serve.engine import Closing, QueueFull
from porter.serve.job import Cancelled

logger = init_logger(__name__)

CLIENT_CLOSED = 499
_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    409: "ConflictError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    499: "ClientClosedRequestError",
    503: "ServiceUnavailableError",
    504: "TimeoutError",
}
_LONGEST = 2000


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: the HTTP status.
        param: the field of the request that is to blame.
        headers: of the answer.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.headers = status, message, param, dict(headers or {})


def bad_request(message: str, param: str | None = None) -> ApiError:
    """The request is wrong as it is."""
    return ApiError(400, message, param)


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of an answer that is an error."""
    kind = _TYPES.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
    return {"error": {"message": message[:_LONGEST], "type": kind, "param": param, "code": status}}


def error_response(error: ApiError) -> JSONResponse:
    """The answer that an error stands for."""
    return JSONResponse(error_body(error.status, error.message, error.param), error.status, error.headers)


def as_api_error(error: BaseException, parameters: Iterable[str] = ()) -> ApiError:
    """What to answer when a request ended like this.

    Args:
        error: what it ended with.
        parameters: names of the pipeline's arguments; the first that a refusal mentions is to blame.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        wait = str(math.ceil(error.retry_after))
        return ApiError(429, f"as many requests wait as may; try again in {wait} s", None, {"Retry-After": wait})
    if isinstance(error, Closing):
        return ApiError(503, "the server is shutting down", None, {"Retry-After": "10"})
    if isinstance(error, Cancelled):
        return ApiError(
            503, "the request was cancelled because the server is shutting down", None, {"Retry-After": "10"}
        )
    if isinstance(error, PorterRuntimeError | ValueError | TypeError):
        message = " ".join(str(error).split()) or type(error).__name__
        return bad_request(message, mentioned(message, parameters))
    logger.error("a request failed: %s: %s", type(error).__name__, error)
    return ApiError(500, f"the generation failed ({type(error).__name__})")


def mentioned(message: str, names: Iterable[str]) -> str | None:
    """The first of the names in a message."""
    known = set(names)
    return next((word for word in re.findall(r"\w+", message) if word in known), None)


def from_validation(errors: Iterable[Mapping[str, Any]]) -> ApiError:
    """Pydantic's errors as one: each field with what is wrong with it, the first one to blame."""
    texts, param = [], None
    for error in list(errors)[:8]:
        if error.get("type") == "json_invalid":
            return bad_request(f"the body is not JSON: {(error.get('ctx') or {}).get('error', error.get('msg'))}")
        place = ".".join(str(part) for part in error["loc"] if part not in ("body", "query", "path")) or None
        param = param or place
        reason = (
            "unknown field" if error["type"] == "extra_forbidden" else str(error["msg"]).removeprefix("Value error, ")
        )
        texts.append(f"{place}: {reason}" if place else reason)
    return bad_request("; ".join(texts), param)


def install(app: FastAPI) -> None:
    """Have every error of an app answered in this form."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(from_validation(error.errors()))

    @app.exception_handler(ValidationError)
    async def invalid_form(_: Request, error: ValidationError) -> JSONResponse:
        return error_response(from_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        message = str(error.detail or HTTPStatus(error.status_code).phrase)
        return error_response(ApiError(error.status_code, message, None, error.headers))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return error_response(as_api_error(error) if isinstance(error, _EXPECTED) else _internal(error))


_EXPECTED = (QueueFull, Closing, Cancelled, PorterRuntimeError)


def _internal(error: Exception) -> ApiError:
    logger.error("unexpected: %s", error, exc_info=error)
    return ApiError(500, f"internal error ({type(error).__name__})")
