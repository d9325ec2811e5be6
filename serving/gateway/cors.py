"""CORS: requests from web pages of the origins in the spec, and their preflights."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from serving.gateway.asgi import REPLICA_HEADER, App, Scope, error_body

METHODS = ("GET", "HEAD", "POST")
EXPOSED = (
    "x-request-id retry-after retry-after-ms server-timing x-ignored-fields x-guardrail "
    "x-routed-model x-routed-reason x-routed-fallback " + REPLICA_HEADER
).split() + [
    f"x-ratelimit-{part}-{kind}"
    for part in ("limit", "remaining", "reset")
    for kind in ("requests", "tokens")
]
"""Response headers that a page may read."""

MAX_AGE_S = 600
"""Seconds for which a browser may keep the answer to a preflight."""


class CrossOrigin(CORSMiddleware):  # type: ignore[misc]
    """Starlette's middleware, with the errors of OpenAI's API.

    Every request header is allowed: those that the gate does not know never pass it.

    Args:
        app: The application that answers.
        origins: The allowed origins.
    """

    def __init__(self, app: App, origins: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=EXPOSED,
            max_age=MAX_AGE_S,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a preflight, which has no key."""
        if not self.is_allowed_origin(request_headers["origin"]):
            message = (
                "Web pages of this origin may not use the endpoint. Add the origin to cors_origins "
                "in the endpoint's spec, and deploy it again."
            )
            return _error(message, "origin_not_allowed")
        response = super().preflight_response(request_headers)
        if response.status_code != 200:
            return _error(f"This endpoint only accepts {', '.join(METHODS)}.", "method_not_allowed")
        headers = {
            name: value for name, value in response.headers.items() if name.startswith("access-")
        }
        return Response(status_code=204, headers=headers | {"vary": response.headers["vary"]})


def is_preflight(scope: Scope) -> bool:
    """Return whether a browser asks if a page may send a request."""
    if scope["type"] != "http" or scope["method"] != "OPTIONS":
        return False
    names = {name.lower() for name, _ in scope.get("headers", ())}
    return names >= {b"origin", b"access-control-request-method"}


def _error(message: str, code: str) -> JSONResponse:
    return JSONResponse(error_body(message, "invalid_request_error", code), 403)
