"""The gate in front of both serving paths: authentication, limits, quotas and back-pressure.

Only SHA-256 hashes of keys travel to the cluster, and each is compared in constant time
(``hmac.compare_digest``). Every error has OpenAI's shape, so that the OpenAI client raises its own
exception for it. A request that passes is rebuilt from its checked body and the headers that an
answer can depend on. The key is not passed on.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable

from serving.gateway.asgi import ApiError, App, OverloadedError, Receive, Scope, Send, respond_json
from serving.gateway.authentication import authenticated_tenant
from serving.gateway.bodies.body import Body, BodyMemory, body_too_large, read_body
from serving.gateway.bodies.body_checks import check_body
from serving.gateway.bodies.fields import POST_ROUTES
from serving.gateway.bodies.known_fields import ignored_header
from serving.gateway.bodies.stored_responses import (
    check_store_fields,
    check_store_route,
    stored_response_method,
)
from serving.gateway.concurrency import ConcurrencyLimiter, FullError
from serving.gateway.config import GateConfig
from serving.gateway.context import SCOPE_KEY, RequestContext
from serving.gateway.cors import CrossOrigin, is_preflight
from serving.gateway.error_bodies import MESSAGES, ErrorRewriter, anthropic_error
from serving.gateway.error_events import send_timeout
from serving.gateway.http_routes import (
    OPEN_ROUTES,
    check_headers,
    check_method,
    check_read,
    check_session,
    content_length,
    is_models_route,
    no_such_route,
    path_below_prefix,
    replay_body,
    sanitized_scope,
    without_body,
)
from serving.gateway.keep_alive import KeepAlive
from serving.gateway.metering import Meter
from serving.gateway.rate_limits import quota_error, rate_limit_headers
from serving.gateway.served_models import ModelList, resolve_model
from serving.gateway.stages import StageTimings, with_server_timing
from serving.quotas.accounts import QuotaLedger
from serving.quotas.actor import ActorLedger
from serving.quotas.client import Ledger, OverQuotaError, QuotaClient
from serving.quotas.lease import QuotaLease
from serving.spec.tenants import Tenant


class Gate:
    """ASGI middleware: authentication, limits, quotas and back-pressure on every route but health.

    The application behind it reads the request's :class:`RequestContext` from the scope.

    Args:
        app: The application behind the gate.
        config: Returns what the gate enforces now; None before Serve has configured it.
        ledger: The quotas shared with other gates; by default this gate has its own.
        context_length: Context length in tokens of the only model, for ``/v1/models``.
    """

    def __init__(
        self,
        app: App,
        config: Callable[[], GateConfig | None],
        ledger: Ledger | None = None,
        context_length: int | None = None,
    ) -> None:
        self._app = app
        self._config = config
        self._models = ModelList(int(time.time()), context_length)
        self.slots = ConcurrencyLimiter()
        self.shed = 0
        self.quotas = QuotaClient(uuid.uuid4().hex, ledger or QuotaLedger(), self._tenants)
        self.memory = BodyMemory()
        self._cross_origin = CrossOrigin(self._handle, ())

    def _tenants(self) -> tuple[Tenant, ...]:
        config = self._config()
        return () if config is None else config.tenants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI request."""
        config = self._config()
        origins = () if config is None else config.cors_origins
        if not origins and not is_preflight(scope):
            return await self._handle(scope, receive, send)
        if self._cross_origin.allow_origins != origins:
            self._cross_origin = CrossOrigin(self._handle, origins)
        await self._cross_origin(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_below_prefix(scope)
        if scope["type"] == "lifespan" or path in OPEN_ROUTES:
            return await self._open(path, scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        if path.startswith(MESSAGES):
            send = ErrorRewriter(send, anthropic_error).send
        try:
            context = scope[SCOPE_KEY] = self._authenticate(path, scope)
            if method := stored_response_method(path):
                check_method(scope["method"], method)
                check_store_route(context.config)
                return await self._app(sanitized_scope(scope, b""), replay_body(b"", receive), send)
            if scope["method"] == "POST":
                return await self._post(context, scope, receive, send)
            await self._read(context, scope, receive, send)
        except ApiError as error:
            if not error.sent:
                await error.send(send)

    async def _open(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request that needs no key; HEAD as GET, since the engine only knows that."""
        if path in OPEN_ROUTES and scope["type"] == "http" and scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, without_body(send)
        await self._app(scope, receive, send)

    async def _read(
        self, context: RequestContext, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a request without a body."""
        check_read(context.path, scope["method"], context.tenant)
        if not is_models_route(context.path):
            return await self._app(sanitized_scope(scope, b""), receive, send)
        if scope["method"] == "HEAD":
            send = without_body(send)
        answer = self._models.answer(context.path, context.config, context.tenant)
        await respond_json(send, 200, answer)

    def _authenticate(self, path: str, scope: Scope) -> RequestContext:
        config = self._config()
        assert config is not None, "Serve calls reconfigure before the first request"
        timings = StageTimings()
        with timings.measure("authentication"):
            tenant = authenticated_tenant(scope, config)
            check_headers(scope)
        return RequestContext(path, config, tenant, timings)

    async def _post(
        self, context: RequestContext, scope: Scope, receive: Receive, send: Send
    ) -> None:
        limits = context.config.limits
        if context.path not in POST_ROUTES:
            raise no_such_route(context.path)
        if not context.config.sessions:
            check_session(scope)
        if content_length(scope) > limits.max_body_bytes:
            raise body_too_large(limits)
        self.quotas.start()
        lease = self.quotas.lease(context.tenant)
        try:
            with self.memory.hold() as reserve:
                raw = await read_body(receive, limits, reserve)
                if raw is None:
                    return
                with context.timings.measure("authentication"):
                    body = check_body(context.path, raw, limits)
                    resolve_model(body, context.config, context.tenant)
                    check_store_fields(body, context.config)
                context.body = body
                await self._serve(context, lease, body, scope, receive, send)
        except FullError:  # too many large bodies
            lease.count("shed")
            raise self._overloaded(context.config) from None
        except ApiError as error:
            lease.count("shed" if isinstance(error, OverloadedError) else "refused")
            raise

    async def _serve(
        self,
        context: RequestContext,
        lease: QuotaLease,
        body: Body,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Serve a checked request within its tenant's quotas, and charge what it cost."""
        reserved = body.reserved_tokens if POST_ROUTES[context.path].uses_tokens else 0
        try:
            with context.timings.measure("authentication"):
                await self.quotas.admit(lease, reserved)
        except OverQuotaError as error:
            raise quota_error(error, lease, time.monotonic()) from None
        body.request_usage()

        def headers() -> list[tuple[str, str]]:
            return rate_limit_headers(lease, time.monotonic()) + ignored_header(body.ignored)

        timed_send = with_server_timing(send, context.timings)
        interval_s = context.config.limits.keep_alive_s if body.streams else 0
        async with KeepAlive(timed_send, interval_s, body.kind, headers) as keep_alive:
            meter = Meter(keep_alive.send, body, headers)
            used = 0
            try:
                await self._forward(context, lease, body, scope, receive, meter)
                tokens = meter.tokens(context.generated)
                used = lease.charge(tokens, failed=(meter.status or 500) >= 500)
            except ApiError as error:  # shed: nothing was served
                if keep_alive.started:
                    await error.send(keep_alive.send)
                raise
            except BaseException as error:
                disconnected = isinstance(error, asyncio.CancelledError)
                used = lease.charge(meter.tokens(context.generated), failed=not disconnected)
                raise
            finally:
                self.quotas.release(lease, reserved, used)

    async def _forward(
        self,
        context: RequestContext,
        lease: QuotaLease,
        body: Body,
        scope: Scope,
        receive: Receive,
        meter: Meter,
    ) -> None:
        """Call the application, within the limits on concurrency and time."""
        config = context.config
        limit_s = config.limits.max_seconds
        try:
            async with asyncio.timeout(limit_s) as deadline:
                async with self.slots.hold(config.max_ongoing_requests, config.max_queued_requests):
                    data = body.encoded()
                    await self._app(
                        sanitized_scope(scope, data), replay_body(data, receive), meter.send
                    )
        except FullError:
            self.quotas.refund(lease)
            raise self._overloaded(config) from None
        except TimeoutError:
            if not deadline.expired():
                raise
            await send_timeout(meter, body.kind, limit_s)

    def _overloaded(self, config: GateConfig) -> OverloadedError:
        self.shed += 1
        return OverloadedError(
            429,
            f"The service is at capacity: {config.max_ongoing_requests} requests in progress and "
            f"{config.max_queued_requests} waiting. Try again in {config.retry_after_s} s.",
            "rate_limit_exceeded",
            "rate_limit_error",
            {"retry-after": str(config.retry_after_s)},
        )


def open_gate(
    app: App, config: Callable[[], GateConfig | None], context_length: int | None = None
) -> Gate:
    """Return a gate for a Serve replica, already connected to the service's quota ledger."""
    from ray import serve

    ledger = ActorLedger(serve.get_replica_context().app_name)
    gate = Gate(app, config, ledger, context_length)
    gate.quotas.start()
    return gate
