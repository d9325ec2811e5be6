"""Who may call, and how much at once: the same gate stands before both serving paths.

Only SHA-256 hashes of keys travel to the cluster and are compared, each in constant time
(``hmac.compare_digest``). Every refusal has OpenAI's error shape, so that the OpenAI client raises
its own exception for it. What passes is rebuilt: a checked body (:mod:`serving.gateway.body`),
and no
header but those that an answer can depend on; the key ends here.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Self

from pydantic import Field, model_validator

from serving.gateway import body as bodies
from serving.gateway.asgi import ApiError, App, OverloadedError, Receive, Scope, Send, error_body
from serving.gateway.body import Body
from serving.gateway.concurrency import ConcurrencyLimiter, FullError
from serving.gateway.http_routes import (
    OPEN_ROUTES,
    bearer,
    check_headers,
    check_read,
    content_length,
    no_route,
    rebuilt,
    replay,
    route,
)
from serving.gateway.metering import Meter
from serving.gateway.rate_limits import over_quota, rate_headers
from serving.gateway.stages import StageTimings, timed
from serving.quotas.actor import ActorLedger
from serving.quotas.client import LocalBook, OverQuotaError, QuotaClients, RemoteBook
from serving.quotas.lease import QuotaLease
from serving.spec.base import Strict
from serving.spec.limits import Limits
from serving.spec.router import AUTO
from serving.spec.tenants import Tenant, authenticate, check_tenants

HELD_BYTES = 64 * 2**20
"""Bodies held at one gate, all together; a flood of large ones must not fill memory."""


class GateConfig(Strict):
    """What a gate enforces; travels as the deployment's ``user_config``."""

    tenants: tuple[Tenant, ...] = Field(
        min_length=1, description="Who may call, each with the SHA-256 of its key."
    )
    limits: Limits = Field(default_factory=Limits, description="What one request may ask for.")
    max_ongoing_requests: int = Field(ge=1, description="Requests in progress at one gate.")
    max_queued_requests: int = Field(ge=0, description="Requests waiting at one gate.")
    retry_after_s: int = Field(ge=1, description="Seconds in the Retry-After header.")

    def holder(self, presented: str) -> Tenant | None:
        """Whose key was presented, if anyone's; takes the same time whichever it is."""
        return authenticate(presented, self.tenants)

    @model_validator(mode="after")
    def _everyone_has_a_key_of_their_own(self) -> Self:
        check_tenants(self.tenants)
        for tenant in self.tenants:
            if tenant.key_hash is None:
                raise ValueError(f"tenant {tenant.name!r} has no key_hash; give one")
        return self


class Gate:
    """ASGI middleware: authentication, limits, quotas and back-pressure on every route but health.

    The application behind finds the tenant in ``scope["tenant"]``, and in ``scope["stages"]`` what
    it may add its times to; ``scope["constrained"]`` is true where a grammar of the client's rules.
    """

    def __init__(
        self, app: App, access: Callable[[], GateConfig | None], book: RemoteBook | None = None
    ) -> None:
        self._app = app
        self._access = access
        self.slots = ConcurrencyLimiter()
        self.shed = 0
        self.allowances = QuotaClients(uuid.uuid4().hex, book or LocalBook(), self._tenants)
        self._held_bytes = 0

    def _tenants(self) -> tuple[Tenant, ...]:
        access = self._access()
        return () if access is None else access.tenants

    def _required_access(self) -> GateConfig:
        access = self._access()
        assert access is not None, "Serve calls reconfigure before the first request"
        return access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or route(scope) in OPEN_ROUTES:
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        access = self._required_access()
        stages = scope["stages"] = StageTimings()
        try:
            with stages.measure("authentication"):
                tenant = scope["tenant"] = _caller(scope, access)
                check_headers(scope)
            if scope["method"] != "POST":
                check_read(scope, tenant)
                return await self._app(rebuilt(scope, b""), receive, send)
            await self._post(scope, receive, send, access, tenant)
        except ApiError as refusal:
            await refusal.send(send)

    async def _post(
        self, scope: Scope, receive: Receive, send: Send, access: GateConfig, tenant: Tenant
    ) -> None:
        path = route(scope)
        if path not in bodies.POST_ROUTES:
            raise no_route(scope)
        if content_length(scope) > access.limits.max_body_bytes:
            raise bodies.too_large(access.limits)
        self.allowances.start()
        purse = self.allowances.purse(tenant)
        held = 0

        def grow(size: int) -> None:
            nonlocal held
            if self._held_bytes + size > HELD_BYTES:
                raise self._full(access)
            held += size
            self._held_bytes += size

        try:
            raw = await bodies.read(receive, access.limits, grow)
            if raw is None:
                return
            with scope["stages"].measure("authentication"):
                body = bodies.check(path, raw, access.limits)
                _check_model(body, tenant)
            scope["constrained"] = body.constrained
            await self._admitted(scope, receive, send, access, purse, body)
        except ApiError as refusal:
            purse.count("shed" if isinstance(refusal, OverloadedError) else "refused")
            raise
        finally:
            self._held_bytes -= held

    async def _admitted(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        access: GateConfig,
        purse: QuotaLease,
        body: Body,
    ) -> None:
        """Within the tenant's quotas: serve, and charge what it cost."""
        reserved = body.reserved_tokens if route(scope) in bodies.GENERATING else 0
        try:
            with scope["stages"].measure("authentication"):
                await self.allowances.admit(purse, reserved)
        except OverQuotaError as over:
            raise over_quota(over, purse, time.monotonic()) from None
        body.ask_for_usage()
        told = timed(send, scope["stages"])
        meter = Meter(told, body, lambda: rate_headers(purse, time.monotonic()))
        spent = 0
        try:
            await self._in_time(scope, receive, meter, access, body, purse)
            spent = purse.charge(meter.tokens(), failed=(meter.status or 500) >= 500)
        except ApiError:
            raise  # shed: nothing was served
        except BaseException as error:
            left = isinstance(error, asyncio.CancelledError)
            spent = purse.charge(meter.tokens(), failed=not left)
            raise
        finally:
            self.allowances.leave(purse, reserved, spent)

    async def _in_time(
        self,
        scope: Scope,
        receive: Receive,
        meter: Meter,
        access: GateConfig,
        body: Body,
        purse: QuotaLease,
    ) -> None:
        limit = access.limits.max_seconds
        try:
            async with asyncio.timeout(limit) as clock:
                async with self.slots.hold(access.max_ongoing_requests, access.max_queued_requests):
                    data = body.encoded()
                    await self._app(rebuilt(scope, data), replay(data, receive), meter.send)
        except FullError:
            self.allowances.give_back(purse)
            raise self._full(access) from None
        except TimeoutError:
            if not clock.expired():
                raise
            await _end_late(meter, limit)

    def _full(self, access: GateConfig) -> OverloadedError:
        self.shed += 1
        wait = access.retry_after_s
        return OverloadedError(
            429,
            f"The service is at capacity: {access.max_ongoing_requests} requests in progress and "
            f"{access.max_queued_requests} waiting. Try again in {wait} s.",
            "rate_limit_exceeded",
            "rate_limit_error",
            {"retry-after": str(wait)},
        )


async def _end_late(meter: Meter, limit: float) -> None:
    """Say that time is up: as a status, or as a stream's last event where the status is sent."""
    message = f"The request was not answered within {limit:g} s."
    if meter.status is None:
        return await ApiError(504, message, "request_timeout", "timeout_error").send(meter.send)
    if meter.ended:
        return None
    last = b""
    if meter.streams:
        error = error_body(message, "timeout_error", "request_timeout")
        last = b"data: " + json.dumps(error).encode() + b"\n\n"
    return await meter.send({"type": "http.response.body", "body": last})


def _caller(scope: Scope, access: GateConfig) -> Tenant:
    tenant = access.holder(bearer(scope))
    # Only the holder of a key learns that it has ended: no other gets past its hash.
    if tenant is not None and not tenant.expired(datetime.now(UTC)):
        return tenant
    message = "Missing or unknown API key. Send it as 'Authorization: Bearer KEY'."
    code = "invalid_api_key"
    if tenant is not None:
        message, code = f"This API key ended at {tenant.expires_at}.", "expired_api_key"
    raise ApiError(401, message, code, headers={"www-authenticate": "Bearer"})


def _check_model(body: Body, tenant: Tenant) -> None:
    if tenant.models is None or (body.model is not None and tenant.may_use(body.model)):
        return
    if body.model == AUTO:
        return  # the router chooses among the tenant's models
    allowed = ", ".join(tenant.models)
    raise ApiError(403, f"This API key may use these models alone: {allowed}.", "model_not_allowed")


def open_gate(app: App, access: Callable[[], GateConfig | None]) -> Gate:
    """A gate in a Serve replica, in step with the service's ledger from its start."""
    from ray import serve

    gate = Gate(app, access, ActorLedger(serve.get_replica_context().app_name))
    gate.allowances.start()
    return gate
