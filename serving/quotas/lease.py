"""What one gate holds of one tenant's quota, and what the tenant has used there. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from serving.quotas.accounts import LeaseGrant, Usage, UsageReport
from serving.spec.tenants import Tenant

IDLE_S = 1.0
"""What lies unused for so long goes back, where there are other gates."""
LATELY_S = 4.0
"""A tenant that called within this time is kept in step with the book."""


@dataclass
class QuotaLease:
    """What this gate holds of one tenant's quota, and what the tenant has used here."""

    tenant: Tenant
    requests: int = 0
    places: int = 0
    running: int = 0
    reserved: int = 0
    spent: int = 0
    told: int = 0
    used_at: float = 0.0
    synced_at: float = float("-inf")
    lease: int = 0
    refused_until: float = 0.0
    wants_request: bool = False
    wants_place: bool = False
    dirty: bool = False
    grant: LeaseGrant = field(default_factory=LeaseGrant)
    usage: Usage = field(default_factory=Usage)

    def tokens(self, now: float) -> float:
        """Tokens left by this gate's knowledge: the book's word, and what has happened since."""
        quota = self.tenant.tokens_per_minute or 0
        grown = self.grant.tokens_left + self._since(now) * quota / 60
        return min(quota, grown) - self.reserved - (self.spent - self.told)

    def requests_left(self, now: float) -> float:
        """Requests left in this minute's quota, by this gate's knowledge."""
        quota = self.tenant.requests_per_minute or 0
        grown = self.grant.requests_left + self._since(now) * quota / 60
        return min(float(quota), self.requests + max(0.0, grown))

    def _since(self, now: float) -> float:
        return min(60.0, now - self.synced_at)

    @property
    def limited(self) -> bool:
        """Whether any quota holds."""
        t = self.tenant
        return any((t.requests_per_minute, t.tokens_per_minute, t.max_concurrent_requests))

    def to_tell(self, now: float) -> bool:
        """Whether the book should hear of this purse."""
        if self.dirty or self.wants_request or self.wants_place:
            return True
        lately = now - self.used_at < LATELY_S
        return self.limited and (lately or self.requests > 0 or self.places > 0)

    def report(self, now: float) -> UsageReport:
        """What the book is told; unused requests and places go with it."""
        idle = not self.grant.alone and now - self.used_at > IDLE_S
        unused, self.requests = (self.requests, 0) if idle else (0, self.requests)
        if not self.wants_place:
            keep = self.running + (0 if idle else self.grant.keep_places)
            self.places = min(self.places, keep)
        asked = self.wants_request, self.wants_place
        self.wants_request = self.wants_place = self.dirty = False
        return UsageReport(*asked, unused, self.places, self.reserved, self.spent, self.usage)

    def count(self, what: Literal["shed", "refused"]) -> None:
        """Count a request that was not served, and why."""
        self.dirty = True
        self.usage.requests += 1
        setattr(self.usage, what, getattr(self.usage, what) + 1)

    def charge(self, tokens: tuple[int, int], *, failed: bool) -> int:
        """Count one request that was served, or failed; returns its tokens."""
        self.usage.requests += 1
        self.usage.errors += failed
        self.usage.prompt_tokens += tokens[0]
        self.usage.output_tokens += tokens[1]
        return sum(tokens)

    def take(self, grant: LeaseGrant, told: int, now: float) -> None:
        """Enter the book's answer."""
        self.grant, self.told, self.synced_at = grant, told, now
        self.requests += grant.requests
        self.places += grant.places
        self.lease = grant.requests or self.lease
