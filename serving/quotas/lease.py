"""The part of a tenant's quota that one gate holds, and the tenant's usage there. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from serving.quotas.accounts import LeaseGrant, Usage, UsageReport
from serving.spec.tenants import Tenant

IDLE_S = 1.0
"""Seconds after which unused requests are handed back, if there are other gates."""
ACTIVE_S = 4.0
"""Seconds after its last request for which a tenant is kept in sync with the ledger."""


@dataclass
class QuotaLease:
    """One tenant's quota at one gate.

    Attributes:
        tenant: Whose quota this is.
        requests: Leased requests that are not used yet.
        slots: Leased slots for concurrent requests.
        running: Requests in progress.
        reserved_tokens: Tokens reserved for requests in progress.
        used_tokens: Tokens used since the gate joined the ledger.
        reported_tokens: The part of ``used_tokens`` that the ledger has acknowledged.
        last_request_at: When the tenant's last request was admitted, in seconds.
        synced_at: When the last grant arrived, in seconds.
        lease_size: Requests of the last grant that had any.
        refused_until: Until when requests are refused without asking the ledger.
        wants_request: Whether to ask the ledger for requests.
        wants_slot: Whether to ask the ledger for a slot.
        dirty: Whether there is something to report.
        grant: The ledger's last reply.
        usage: Counts of this tenant at this gate.
    """

    tenant: Tenant
    requests: int = 0
    slots: int = 0
    running: int = 0
    reserved_tokens: int = 0
    used_tokens: int = 0
    reported_tokens: int = 0
    last_request_at: float = 0.0
    synced_at: float = float("-inf")
    lease_size: int = 0
    refused_until: float = 0.0
    wants_request: bool = False
    wants_slot: bool = False
    dirty: bool = False
    grant: LeaseGrant = field(default_factory=LeaseGrant)
    usage: Usage = field(default_factory=Usage)

    def tokens_left(self, now: float) -> float:
        """Return the tokens left: the ledger's count, and what has happened here since."""
        quota = self.tenant.tokens_per_minute or 0
        accrued = self.grant.tokens_left + self._since_sync_s(now) * quota / 60
        unreported = self.used_tokens - self.reported_tokens
        return min(quota, accrued) - self.reserved_tokens - unreported

    def requests_left(self, now: float) -> float:
        """Return the requests left in this minute's quota, as far as this gate knows."""
        quota = self.tenant.requests_per_minute or 0
        accrued = self.grant.requests_left + self._since_sync_s(now) * quota / 60
        return min(float(quota), self.requests + max(0.0, accrued))

    def _since_sync_s(self, now: float) -> float:
        return min(60.0, now - self.synced_at)

    @property
    def limited(self) -> bool:
        """Whether the tenant has any quota."""
        t = self.tenant
        return any((t.requests_per_minute, t.tokens_per_minute, t.max_concurrent_requests))

    def needs_sync(self, now: float) -> bool:
        """Whether the ledger needs a report of this lease."""
        if self.dirty or self.wants_request or self.wants_slot:
            return True
        active = now - self.last_request_at < ACTIVE_S
        return self.limited and (active or self.requests > 0 or self.slots > 0)

    def report(self, now: float) -> UsageReport:
        """Return the report for the ledger, handing back unused requests and slots."""
        idle = not self.grant.only_gate and now - self.last_request_at > IDLE_S
        unused, self.requests = (self.requests, 0) if idle else (0, self.requests)
        if not self.wants_slot:
            spare = 0 if idle else self.grant.spare_slots
            self.slots = min(self.slots, self.running + spare)
        report = UsageReport(
            wants_request=self.wants_request,
            wants_slot=self.wants_slot,
            unused_requests=unused,
            slots=self.slots,
            running=self.running,
            reserved_tokens=self.reserved_tokens,
            used_tokens=self.used_tokens,
            usage=self.usage,
        )
        self.wants_request = self.wants_slot = self.dirty = False
        return report

    def count(self, outcome: Literal["shed", "refused"]) -> None:
        """Count a request that was not served."""
        self.dirty = True
        self.usage.requests += 1
        setattr(self.usage, outcome, getattr(self.usage, outcome) + 1)

    def charge(self, tokens: tuple[int, int], *, failed: bool) -> int:
        """Count a request that was served or failed.

        Args:
            tokens: Tokens of the prompt and of the answer.
            failed: Whether it ended with a server error.

        Returns:
            All its tokens.
        """
        self.usage.requests += 1
        self.usage.errors += failed
        self.usage.prompt_tokens += tokens[0]
        self.usage.output_tokens += tokens[1]
        return sum(tokens)

    def apply_grant(self, grant: LeaseGrant, reported_tokens: int, now: float) -> None:
        """Apply the ledger's reply to a report with these used tokens."""
        self.grant, self.reported_tokens, self.synced_at = grant, reported_tokens, now
        self.requests += grant.requests
        self.slots += grant.slots
        self.lease_size = grant.requests or self.lease_size
