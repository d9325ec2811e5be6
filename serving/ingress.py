"""The composed path's own ingress: it refuses a request before anything queues or wakes."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from ray import serve
from ray.llm._internal.serve.core.configs.openai_api_models import ModelCard
from ray.llm._internal.serve.core.ingress.ingress import DEFAULT_ENDPOINTS, OpenAiIngress, init
from ray.serve.handle import DeploymentHandle
from starlette.responses import JSONResponse

from serving.auth import Access, App, Gate, error_body


@serve.ingress()
class Ingress(OpenAiIngress):  # type: ignore[misc]
    """Ray Serve LLM's OpenAI ingress behind our gate, in front of a model that may sleep."""

    async def __init__(self, model: DeploymentHandle, model_id: str) -> None:  # type: ignore[misc]
        card = ModelCard(
            id=model_id, object="model", owned_by="workbench", permission=[], metadata={}
        )
        super().__init__({model_id: model}, {model_id: card})
        self._access: Access | None = None

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new keys and limits without a restart."""
        self._access = Access(**user_config["access"])

    async def __serve_build_asgi_app__(self) -> App:
        app = init()
        for name, route in DEFAULT_ENDPOINTS.items():
            route(app)(getattr(self, name))
        app.get("/health")(self._health)
        app.add_exception_handler(HTTPException, _on_http_exception)
        app.add_exception_handler(RequestValidationError, _on_invalid_request)
        return Gate(app, lambda: self._required_access())

    async def _health(self) -> dict[str, str]:
        return {"status": "ok"}

    def _required_access(self) -> Access:
        assert self._access is not None, "Serve calls reconfigure before the first request"
        return self._access


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's own shape is ``{"detail": ...}``, which OpenAI's client cannot read."""
    assert isinstance(error, HTTPException)
    code = "model_not_found" if error.status_code == 404 else None
    body = error_body(str(error.detail), "invalid_request_error", code)
    return JSONResponse(body, error.status_code, error.headers)


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    """Ray's handler echoes the input, and answers 500 where that is not JSON."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0] if error.errors() else {"msg": "invalid request", "loc": ()}
    where = ".".join(str(part) for part in first["loc"])
    body = error_body(f"{where}: {first['msg']}", "invalid_request_error", "invalid_parameter")
    return JSONResponse(body, 400)
