"""Errors as answers: problem+json (RFC 9457) for the control API, OpenAI's form for inference."""

import math
from typing import Any

import orjson

from openmint.errors import CatalogUnavailable, OpenmintError, Overloaded

JsonObject = dict[str, Any]
Headers = list[tuple[bytes, bytes]]

PROBLEM_TYPE = b"application/problem+json"

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


class HeadersTooLarge(OpenmintError):
    """The request's headers or its address are larger than the limit."""

    code = "headers_too_large"
    http_status = 431


class BodyTooSlow(OpenmintError):
    """The request's body did not arrive in time."""

    code = "body_too_slow"
    http_status = 408


class MethodNotAllowed(OpenmintError):
    """This route does not know the method."""

    code = "method_not_allowed"
    http_status = 405


class QueueFull(Overloaded):
    """As many requests wait as may wait."""

    http_status = 429


class WaitTooLong(Overloaded):
    """The request would wait longer than it may."""

    code = "wait_too_long"
    http_status = 429


def problem_body(error: OpenmintError, request_id: str) -> JsonObject:
    """The error as problem+json."""
    title = (type(error).__doc__ or "").strip().splitlines()[0]
    body: JsonObject = {
        "type": f"urn:openmint:error:{error.code}",
        "title": title,
        "status": error.http_status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
        "retryable": error.retryable,
    }
    if error.field is not None:
        body["field"] = error.field
    if error.retry_after_s is not None:
        body["retry_after_s"] = error.retry_after_s
    return body


def openai_error(error: OpenmintError) -> JsonObject:
    """The error as OpenAI's clients expect it."""
    kind = _OPENAI_TYPES.get(error.http_status, "server_error")
    return {"error": {"message": error.detail, "type": kind, "param": error.field, "code": error.code}}


def openai_error_event(error: OpenmintError) -> bytes:
    """The error inside a stream that has begun already."""
    return b"data: " + orjson.dumps(openai_error(error)) + b"\n\n"


def error_headers(error: OpenmintError) -> Headers:
    """`Retry-After` where the error says when, in whole seconds as HTTP wants them."""
    if error.http_status == 401:
        return [(b"www-authenticate", b"Bearer")]
    if error.retry_after_s is not None:
        return [(b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode())]
    if error.http_status in (429, 503):
        return [(b"retry-after", b"1")]
    return []


def as_openmint_error(error: Exception) -> OpenmintError:
    """The error to answer with: our own as it is, a lost database as unavailable, anything else without its text."""
    if isinstance(error, OpenmintError):
        return error
    if isinstance(error, (ConnectionError, TimeoutError)):
        return CatalogUnavailable(retry_after_s=1.0)
    return OpenmintError("something went wrong inside openmint; the request id finds it in the logs")
