"""Errors as the OpenAI API writes them: `{"error": {message, type, param, code}}`."""

from typing import Any

from starlette.exceptions import HTTPException

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 504: "timeout_error"}
"""The `type` of an error by its status; else 4xx is an `invalid_request_error`, 5xx a `server_error`."""


class ApiError(HTTPException):
    """What a request ends with instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """`param` names the field at fault, `code` is for programs."""
        super().__init__(status_code=status, detail=message, headers=headers)
        self.param = param
        self.code = code


def error_body(error: HTTPException) -> dict[str, Any]:
    """The JSON of an error; control characters and line breaks in its message become spaces."""
    status = error.status_code
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    message = " ".join(str(error.detail).split())
    param, code = getattr(error, "param", None), getattr(error, "code", None)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
