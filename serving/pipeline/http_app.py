"""The ingress's FastAPI application: OpenAI's shape for every error, and no work per token."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse

from serving.compat.ray_ingress import OpenAIHTTPException
from serving.gateway.asgi import App, Message, Receive, Scope, Send, error_body, respond
from serving.guardrail.guard import RefusedError

DONE = "data: [DONE]\n\n"
logger = logging.getLogger(__name__)


def create_app() -> FastAPI:
    """Return FastAPI without Ray's middleware, some of which passes each packet through a queue."""
    app = FastAPI()
    app.add_middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"]
    )
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(OpenAIHTTPException, _on_ray_error)
    app.add_exception_handler(RefusedError, _on_refused)
    app.add_middleware(ErrorMiddleware)
    return app


class ErrorMiddleware:
    """Answers any other exception, reporting only its type: its message may contain private text.

    FastAPI's own handler of all exceptions raises them again, and they would be logged.
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


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Replace FastAPI's own shape ``{"detail": ...}``, which OpenAI's client cannot read."""
    assert isinstance(error, HTTPException)
    not_found = "not_found" if error.detail == "Not Found" else "model_not_found"
    code = not_found if error.status_code == 404 else None
    body = error_body(str(error.detail), "invalid_request_error", code)
    return JSONResponse(body, error.status_code, error.headers)


async def _on_ray_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OpenAIHTTPException)
    code = "model_not_found" if error.status_code == 404 else None
    body = error_body(error.message, "invalid_request_error", code)
    return JSONResponse(body, error.status_code)


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    """Replace Ray's handler, which echoes the input and answers 500 if that is not JSON."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0] if error.errors() else {"msg": "invalid request", "loc": ()}
    field = ".".join(str(part) for part in first["loc"])
    body = error_body(f"{field}: {first['msg']}", "invalid_request_error", "invalid_parameter")
    return JSONResponse(body, 400)


async def _on_refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)
    return JSONResponse(error_body(str(error), error.kind, error.code), error.status, error.headers)
