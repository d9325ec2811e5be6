"""Quotas as a client sees them: OpenAI's rate-limit headers, and 429 with Retry-After."""

from __future__ import annotations

import math

from serving.gateway.asgi import ApiError
from serving.quotas.client import OverQuotaError
from serving.quotas.lease import QuotaLease

_UNITS = {"requests": "requests per minute", "tokens": "tokens per minute"}


def rate_limit_headers(lease: QuotaLease, now: float) -> list[tuple[str, str]]:
    """Return ``x-ratelimit-{limit,remaining,reset}-{requests,tokens}``, named as OpenAI does.

    ``reset`` is the time until the whole quota is available again.
    """
    tenant = lease.tenant
    quotas = (
        ("requests", tenant.requests_per_minute, lease.requests_left),
        ("tokens", tenant.tokens_per_minute, lease.tokens_left),
    )
    return [
        header
        for kind, limit, left in quotas
        if limit is not None
        for header in _headers(kind, limit, left(now))
    ]


def _headers(kind: str, limit: int, left: float) -> list[tuple[str, str]]:
    return [
        (f"x-ratelimit-limit-{kind}", str(limit)),
        (f"x-ratelimit-remaining-{kind}", str(max(0, int(left)))),
        (f"x-ratelimit-reset-{kind}", _format_duration((limit - left) * 60 / limit)),
    ]


def _format_duration(seconds: float) -> str:
    """Format a duration as OpenAI does: 20ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{max(0, math.ceil(seconds * 1000))}ms"
    minutes, rest = divmod(math.ceil(seconds * 10) / 10, 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:.1f}s"


def quota_error(error: OverQuotaError, lease: QuotaLease, now: float) -> ApiError:
    """Return the response to a request beyond its tenant's quota."""
    wait_s = max(1, math.ceil(error.retry_s))
    unit = _UNITS.get(error.quota, error.quota)
    headers = {"retry-after": str(wait_s), "retry-after-ms": str(math.ceil(error.retry_s * 1000))}
    return ApiError(
        429,
        f"Rate limit reached for {lease.tenant.name}: {error.limit} {unit}. "
        f"Try again in {error.retry_s:.2f} s.",
        "rate_limit_exceeded",
        "rate_limit_error",
        headers | dict(rate_limit_headers(lease, now)),
    )
