"""Who sends a request: the key in its headers, and the tenant that holds it."""

from __future__ import annotations

from datetime import UTC, datetime

from serving.gateway.asgi import ApiError, Scope
from serving.gateway.config import GateConfig
from serving.spec.tenants import Tenant


def authenticated_tenant(scope: Scope, config: GateConfig) -> Tenant:
    """Return the tenant whose key a request has.

    Raises:
        ApiError: 401, the key is missing, unknown or expired, or two different keys are present.
    """
    tenant = config.authenticate(presented_key(scope))
    if tenant is not None and not tenant.expired(datetime.now(UTC)):
        return tenant
    message = (
        "Missing or unknown API key. Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'; "
        "if both are present, they must have the same key."
    )
    code = "invalid_api_key"
    if tenant is not None:  # only someone who has the key learns that it has expired
        message, code = f"This API key expired at {tenant.expires_at}.", "expired_api_key"
    raise ApiError(401, message, code, headers={"www-authenticate": "Bearer"})


def presented_key(scope: Scope) -> str:
    """Return the key of ``Authorization`` or, as Anthropic's clients send it, ``x-api-key``.

    An empty string if there is none, or if the two headers have different keys.
    """
    keys: dict[bytes, str] = {}
    for name, value in scope.get("headers", ()):
        name = name.lower()
        if name == b"authorization":
            scheme, _, key = value.decode("latin-1").partition(" ")
            keys.setdefault(name, key.strip() if scheme.lower() == "bearer" else "")
        elif name == b"x-api-key":
            keys.setdefault(name, value.decode("latin-1").strip())
    distinct = set(keys.values())
    return distinct.pop() if len(distinct) == 1 else ""
