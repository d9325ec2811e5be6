"""Which routes there are behind the gate, and the request as the application there sees it."""

from __future__ import annotations

from serving.gateway import body as bodies
from serving.gateway.asgi import BUDGET_HEADER, ApiError, Message, Receive, Scope
from serving.spec.tenants import OWNER, Tenant

OPEN_ROUTES = frozenset({"/health"})
"""Answered without a key; every other route, known or not, needs one."""

GET_ROUTES = frozenset({"/v1/models", "/version", "/openapi.json"})
OWNER_ROUTES = frozenset({"/metrics", "/load", "/stats", "/docs", "/redoc"})
"""What these tell is of all tenants together."""

FORWARDED = frozenset(
    b"host content-type accept accept-encoding user-agent traceparent tracestate".split()
    + [BUDGET_HEADER.encode()]
)
"""Headers that pass. Others steer the engine (priority, rank, adapter) or carry the key."""


def check_read(scope: Scope, tenant: Tenant) -> None:
    path = route(scope)
    open_to = GET_ROUTES | OWNER_ROUTES if tenant.name == OWNER else GET_ROUTES
    if path not in open_to and not path.startswith("/v1/models/"):
        raise no_route(scope)
    if scope["method"] not in ("GET", "HEAD"):
        raise ApiError(
            405, "This route answers GET.", "method_not_allowed", headers={"allow": "GET"}
        )


def no_route(scope: Scope) -> ApiError:
    if route(scope) in bodies.POST_ROUTES:
        return ApiError(
            405, "This route answers POST.", "method_not_allowed", headers={"allow": "POST"}
        )
    routes = ", ".join(sorted(GET_ROUTES | bodies.POST_ROUTES.keys()))
    return ApiError(404, f"There is no such route here; there are {routes}.", "route_not_found")


def route(scope: Scope) -> str:
    """The path below the route prefix, which ASGI gives as ``root_path`` and again in ``path``."""
    path, prefix = str(scope.get("path", "")), str(scope.get("root_path", "")).rstrip("/")
    return path[len(prefix) :] if path.startswith(f"{prefix}/") else path


def bearer(scope: Scope) -> str:
    for name, value in scope.get("headers", ()):
        if name.lower() == b"authorization":
            scheme, _, key = value.decode("latin-1").partition(" ")
            return key.strip() if scheme.lower() == "bearer" else ""
    return ""


def check_headers(scope: Scope) -> None:
    """Refuse the header by which Ray Serve would load an adapter; it is read before the gate."""
    for name, _ in scope.get("headers", ()):
        if name.lower().replace(b"-", b"_") == b"serve_multiplexed_model_id":
            raise ApiError(
                400, "serve_multiplexed_model_id is not accepted here.", "unknown_parameter"
            )


def content_length(scope: Scope) -> int:
    for name, value in scope.get("headers", ()):
        # A length of more digits than any limit is read as one beyond it.
        if name.lower() == b"content-length" and value.isdigit():
            return int(value[:18])
    return 0


def rebuilt(scope: Scope, body: bytes) -> Scope:
    """The request as the application behind sees it."""
    kept = [(name, value) for name, value in scope["headers"] if name.lower() in FORWARDED]
    length = [(b"content-length", str(len(body)).encode())] if body else []
    return {**scope, "headers": kept + length}


def replay(body: bytes, receive: Receive) -> Receive:
    """Give the checked body once, then what comes from the client: its leaving."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
