"""The ingress's application: one handler for every route, and OpenAI's shape for every error."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.gateway.asgi import App, Message, Receive, Scope, Send, error_body, respond
from serving.guardrail.guard import RefusedError

logger = logging.getLogger(__name__)


def create_app(answer: Callable[[Request], Awaitable[Response]]) -> Starlette:
    """Return the application behind the gate, which decides which routes exist.

    Args:
        answer: Answers a POST request to any route.
    """
    return Starlette(
        routes=[
            Route("/health", _health, methods=["GET"]),
            Route("/{path:path}", answer, methods=["POST"]),
        ],
        middleware=[Middleware(ErrorMiddleware)],
        exception_handlers={RefusedError: _on_refused, HTTPException: _on_http_exception},
    )


class ErrorMiddleware:
    """Answers any other exception, reporting only its type: its message may contain private text.

    Starlette's own handler of all exceptions raises them again, and they would be logged.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI request."""
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:
            name = type(error).__name__
            logger.error("%s while answering %s", name, scope.get("path"))
            if started:
                raise ConnectionResetError(f"{name} in the middle of an answer") from None
            message = f"The request failed ({name}). Try again later."
            await respond(send, 500, message, "server_error", "internal_error")


async def _health(request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    body = error_body(str(error.detail), "invalid_request_error", "route_not_found")
    return JSONResponse(body, error.status_code, error.headers)


async def _on_refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)
    body = error_body(str(error), error.kind, error.code, error.param)
    return JSONResponse(body, error.status, error.headers)
