"""The routes behind the gate, and the request as the application there sees it."""

from __future__ import annotations

from serving.gateway.asgi import (
    BUDGET_HEADER,
    SESSION_HEADER,
    ApiError,
    Message,
    Receive,
    Scope,
    Send,
)
from serving.gateway.bodies.fields import POST_ROUTES
from serving.spec.tenants import OWNER, Tenant

OPEN_ROUTES = frozenset({"/health"})
"""Routes that need no key; every other route, known or not, needs one."""

MODELS_ROUTE = "/v1/models"
GET_ROUTES = frozenset({MODELS_ROUTE, "/version", "/openapi.json"})
OWNER_ROUTES = frozenset({"/metrics", "/load", "/stats", "/docs", "/redoc"})
"""Open to the owner only: they report on all tenants together."""

FORWARDED = frozenset(
    b"host accept accept-encoding user-agent traceparent tracestate".split()
    + [BUDGET_HEADER.encode(), SESSION_HEADER.encode()]
)
"""Headers that pass. Others steer the engine (priority, rank, adapter) or carry the key."""


def path_below_prefix(scope: Scope) -> str:
    """Return the path below the route prefix.

    ASGI gives the prefix as ``root_path``, and again at the start of ``path``.
    """
    path, prefix = str(scope.get("path", "")), str(scope.get("root_path", "")).rstrip("/")
    return path[len(prefix) :] if path.startswith(f"{prefix}/") else path


def check_read(path: str, method: str, tenant: Tenant) -> None:
    """Check a request without a body.

    Raises:
        ApiError: 404, the tenant has no such route, or 405, the route has another method.
    """
    allowed = GET_ROUTES | OWNER_ROUTES if tenant.name == OWNER else GET_ROUTES
    if path not in allowed and not is_models_route(path):
        raise no_such_route(path)
    check_method(method, "GET")


def is_models_route(path: str) -> bool:
    """Return whether a path is ``/v1/models``, or that of one model below it."""
    return path == MODELS_ROUTE or path.startswith(f"{MODELS_ROUTE}/")


def check_method(method: str, allowed: str) -> None:
    """Check a request's method; HEAD is allowed where GET is.

    Raises:
        ApiError: 405, the route has another method.
    """
    if method != allowed and (method, allowed) != ("HEAD", "GET"):
        raise _wrong_method(allowed)


def no_such_route(path: str) -> ApiError:
    """Return the error for a path that is unknown, or known with another method."""
    if path in POST_ROUTES:
        return _wrong_method("POST")
    routes = ", ".join(sorted(GET_ROUTES | POST_ROUTES.keys()))
    return ApiError(404, f"There is no such route; the routes are {routes}.", "route_not_found")


def _wrong_method(allowed: str) -> ApiError:
    message = f"This route only accepts {allowed}."
    return ApiError(405, message, "method_not_allowed", headers={"allow": allowed})


def check_headers(scope: Scope) -> None:
    """Refuse the header by which Ray Serve, which reads it before the gate, loads an adapter.

    Raises:
        ApiError: 400, the header is present.
    """
    for name, _ in scope.get("headers", ()):
        if name.lower().replace(b"-", b"_") == b"serve_multiplexed_model_id":
            raise ApiError(
                400, "serve_multiplexed_model_id is not accepted here.", "unknown_parameter"
            )


def check_session(scope: Scope) -> None:
    """Refuse the session of a request where no router reads it: its turns would be scattered.

    Raises:
        ApiError: 400, the header is present.
    """
    if any(name.lower() == SESSION_HEADER.encode() for name, _ in scope.get("headers", ())):
        raise ApiError(
            400,
            f"This service has no session router, so leave the header {SESSION_HEADER} out, or "
            "deploy the model with routing='session'.",
            "session_routing_disabled",
            param=SESSION_HEADER,
        )


def content_length(scope: Scope) -> int:
    """Return the declared size of the body in bytes; 0 if it is not declared."""
    for name, value in scope.get("headers", ()):
        if name.lower() == b"content-length" and value.isdigit():
            return int(value[:18])  # 18 digits already exceed every limit
    return 0


def sanitized_scope(scope: Scope, body: bytes) -> Scope:
    """Return a copy of the scope with the forwarded headers only, and those of ``body``.

    The body is JSON, whatever type the client declared, as on the way through an ingress.
    """
    kept = [(name, value) for name, value in scope["headers"] if name.lower() in FORWARDED]
    if body:
        kept += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return {**scope, "headers": kept}


def replay_body(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives ``body`` once, then what the client sends: a disconnect."""
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def without_body(send: Send) -> Send:
    """Wrap ``send`` for the response to HEAD, which has the headers of GET and no body."""

    async def send_headers(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_headers
