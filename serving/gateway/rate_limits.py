"""Quotas as a client meets them: the usual rate-limit headers, and 429 with Retry-After."""

from __future__ import annotations

import math

from serving.gateway.asgi import ApiError
from serving.quotas.client import OverQuotaError
from serving.quotas.lease import QuotaLease

_WORDS = {"requests": "requests a minute", "tokens": "tokens a minute"}


def rate_headers(purse: QuotaLease, now: float) -> list[tuple[str, str]]:
    """``x-ratelimit-{limit,remaining,reset}-{requests,tokens}``, as OpenAI names them.

    ``reset`` is the time until the whole quota is there again.
    """
    tenant = purse.tenant
    kinds = (
        ("requests", tenant.requests_per_minute, purse.requests_left),
        ("tokens", tenant.tokens_per_minute, purse.tokens),
    )
    return [
        header
        for kind, limit, left in kinds
        if limit is not None
        for header in _headers(kind, limit, left(now))
    ]


def _headers(kind: str, limit: int, left: float) -> list[tuple[str, str]]:
    return [
        (f"x-ratelimit-limit-{kind}", str(limit)),
        (f"x-ratelimit-remaining-{kind}", str(max(0, int(left)))),
        (f"x-ratelimit-reset-{kind}", _duration((limit - left) * 60 / limit)),
    ]


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 20ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{max(0, math.ceil(seconds * 1000))}ms"
    minutes, rest = divmod(math.ceil(seconds * 10) / 10, 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:.1f}s"


def over_quota(over: OverQuotaError, purse: QuotaLease, now: float) -> ApiError:
    """The refusal of a request beyond its tenant's quota."""
    wait = max(1, math.ceil(over.retry_s))
    what = _WORDS.get(over.quota, over.quota)
    headers = {"retry-after": str(wait), "retry-after-ms": str(math.ceil(over.retry_s * 1000))}
    return ApiError(
        429,
        f"Rate limit reached for {purse.tenant.name}: {over.limit} {what}. "
        f"Try again in {over.retry_s:.2f} s.",
        "rate_limit_exceeded",
        "rate_limit_error",
        headers | dict(rate_headers(purse, now)),
    )
