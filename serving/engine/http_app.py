"""vLLM's own HTTP application, with errors that OpenAI's clients can read."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import fastapi
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from serving.compat.vllm import (
    GeneratedTokens,
    generated_tokens,
    generation_error,
    generation_error_response,
)
from serving.engine.grammars import TOO_COMPLEX
from serving.gateway.asgi import App, Receive, Scope, Send, error_body
from serving.gateway.context import SCOPE_KEY
from serving.gateway.error_bodies import ErrorRewriter
from serving.gateway.http_routes import path_below_prefix

if TYPE_CHECKING:
    from starlette.requests import Request

_VALUE = re.compile(r" \((parameter|value)=.*\)$", re.DOTALL)
"""What vLLM appends to the message of an error. OpenAI's ``param`` names the field too."""

INVALID_PARAMETER = "invalid_parameter"


def build_engine_app(app: fastapi.FastAPI, supported_tasks: Iterable[str]) -> App:
    """Return vLLM's application, ready to answer the checked requests of a gate.

    Args:
        app: The application that ``vllm.entrypoints.openai.api_server.build_app`` returns.
        supported_tasks: The engine's tasks, from ``AsyncLLM.get_supported_tasks()``, such as
            ``generate`` or ``embed``.
    """
    app.router.default = _unsupported_route(", ".join(sorted(supported_tasks)))
    app.add_exception_handler(RequestValidationError, on_invalid_request)
    for error_class in (HTTPException, fastapi.HTTPException):
        app.add_exception_handler(error_class, on_http_exception)
    app.add_exception_handler(generation_error(), on_generation_error)
    return with_readable_errors(app)


def _unsupported_route(tasks: str) -> App:
    """Return the application for paths that vLLM has no route for, given what its model can do."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        message = f"This model cannot serve {path_below_prefix(scope)}: it supports {tasks}."
        body = error_body(message, "invalid_request_error", "unsupported_route")
        await JSONResponse(body, 404)(scope, receive, send)

    return answer


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Replace Starlette's own shape, ``{"detail": ...}``."""
    assert isinstance(error, HTTPException)
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    return JSONResponse(error_body(str(error.detail), kind, None), error.status_code, error.headers)


async def on_invalid_request(request: Request, error: Exception) -> Response:
    """Name the invalid field; vLLM's own handler repeats the values of the request."""
    assert isinstance(error, RequestValidationError)
    message, field = describe_problem(next(iter(error.errors()), None), error.body)
    return JSONResponse(error_body(message, "invalid_request_error", INVALID_PARAMETER, field), 400)


def describe_problem(problem: Any, body: Any) -> tuple[str, str | None]:
    """Return what is wrong with a body, without its values, and the field at fault.

    Args:
        problem: One of FastAPI's or pydantic's errors; its ``loc`` begins with "body".
        body: The request's body.
    """
    if not isinstance(problem, dict):
        return str(problem or "The request is invalid."), None
    field = _field(problem, body)
    return (f"{field}: {_reason(problem)}", field) if field else (_reason(problem), None)


def _field(problem: dict[str, Any], body: Any) -> str:
    """Return where an error is in the body, such as ``tools.0.function.name``.

    Pydantic's ``loc`` begins with "body" and also has the names of types and validators.
    """
    _, *location = problem["loc"]
    missing = [str(location.pop())] if problem["type"] == "missing" else []
    parts = []
    for part in location:
        try:
            body = body[part]
        except (KeyError, IndexError, TypeError):
            continue
        parts.append(str(part))
    return ".".join(parts + missing)


def _reason(problem: dict[str, Any]) -> str:
    """Return what is wrong, without the value."""
    if problem["type"] == "union_tag_invalid":
        return f"must be one of {problem['ctx']['expected_tags']}"
    return str(problem["msg"]).removeprefix("Value error, ")


async def on_generation_error(request: Request, error: Exception) -> Response:
    """Answer for a request that the engine gave up, which vLLM reports as its own failure.

    A grammar may reach a point where no token is allowed (``root ::= root``); then the request is
    at fault.
    """
    assert isinstance(error, generation_error())
    context = request.scope.get(SCOPE_KEY)
    if context is None or not context.constrained:
        response: Response = await generation_error_response(request, error)
        return response
    message = "The grammar or schema reached a point where no token is allowed."
    body = error_body(message, "invalid_request_error", "grammar_dead_end")
    return JSONResponse(body, 400)


def with_readable_errors(app: App) -> App:
    """Return ``app``, with errors that vLLM's handlers return themselves rewritten.

    The context of each request can then tell how many tokens its answer has so far, and the engine
    stops if the request is cancelled.
    """

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        tokens = GeneratedTokens()
        if (context := scope.get(SCOPE_KEY)) is not None:
            generated_tokens.set(tokens)
            context.generated = tokens.count
        try:
            await app(scope, receive, ErrorRewriter(send, readable_error).send)
        except asyncio.CancelledError:
            # vLLM's handlers run in tasks of their own, which a cancellation does not reach.
            tokens.abort()
            raise

    return wrapped


def without_value(message: str) -> str:
    """Return vLLM's message of an error without the rejected value."""
    return _VALUE.sub("", message)


def readable_error(body: bytes) -> bytes:
    """Return the body of an error with all of OpenAI's keys and without the rejected value.

    Args:
        body: The body as vLLM's application sends it; what is no error in JSON is not changed.
    """
    try:
        error = json.loads(body)["error"]
        message = without_value(error["message"])
    except (ValueError, KeyError, TypeError):
        return body
    code = {"code": "grammar_too_complex"} if TOO_COMPLEX in message else {}
    fields = {"error": {"param": None, "code": None} | error | code | {"message": message}}
    return json.dumps(fields).encode()
