"""The ledger of a service: every tenant's quota, from which its gates lease. Pure.

Requests and slots for concurrent requests are leased, so that all gates together never admit more
than the quota. Tokens are known only when an answer has ended: a request reserves what it may cost
and is charged what it did cost, and a debt is paid off before the next request is admitted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from serving.spec.tenants import Tenant

LEASE_SHARE = 20
"""Share of a minute's requests that a gate leases at once, if there are other gates."""

FORGET_S = 5.0
"""Seconds without a report after which a gate is gone, and its reservations and slots are free."""


@dataclass
class TokenBucket:
    """A quota per minute that refills evenly up to ``capacity``; below zero it is in debt."""

    capacity: float
    updated_at: float
    level: float = field(init=False)

    def __post_init__(self) -> None:
        self.level = self.capacity

    def refill(self, now: float) -> None:
        """Add what has accrued since the last refill."""
        gained = (now - self.updated_at) * self.capacity / 60
        self.level, self.updated_at = min(self.capacity, self.level + gained), now

    def resize(self, capacity: float) -> None:
        """Change the quota; what was spent stays spent."""
        self.level, self.capacity = self.level + capacity - self.capacity, capacity

    def wait_s(self, amount: float) -> float:
        """Return the seconds until ``amount``, or all of the bucket if less, is available."""
        return max(0.0, min(amount, self.capacity) - self.level) * 60 / self.capacity


@dataclass
class Usage:
    """The usage of one tenant since the service started, as counts."""

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    shed: int = 0
    refused: int = 0
    errors: int = 0

    def add(self, other: Usage) -> None:
        """Add the counts of another record."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class UsageReport:
    """The report of one gate about one tenant.

    All are totals since the gate joined, except ``unused_requests``, which are handed back, and
    ``running``, the requests in progress; a lost reply does no harm.
    """

    wants_request: bool = False
    wants_slot: bool = False
    unused_requests: int = 0
    slots: int = 0
    running: int = 0
    reserved_tokens: int = 0
    used_tokens: int = 0
    usage: Usage = field(default_factory=Usage)


@dataclass
class LeaseGrant:
    """The ledger's reply to a report.

    Attributes:
        requests: Requests leased by this reply.
        slots: Slots leased by this reply.
        spare_slots: Slots that the gate may keep beyond those in use.
        only_gate: Whether the service has no other gate.
        requests_left: Requests that remain in the ledger.
        tokens_left: Tokens that remain after the reservations of other gates.
    """

    requests: int = 0
    slots: int = 0
    spare_slots: int = 0
    only_gate: bool = True
    requests_left: float = 0.0
    tokens_left: float = 0.0


@dataclass
class _Holding:
    """The part of one tenant's quota that one gate holds."""

    slots: int = 0
    reserved_tokens: int = 0


class _Account:
    """One tenant's buckets, and what each gate holds of them."""

    def __init__(self, tenant: Tenant, now: float) -> None:
        self.tenant = tenant
        self.requests = _bucket(tenant.requests_per_minute, None, now)
        self.tokens = _bucket(tenant.tokens_per_minute, None, now)
        self.holdings: dict[str, _Holding] = {}
        self.used_tokens: dict[str, int] = {}

    def change(self, tenant: Tenant, now: float) -> None:
        """Apply changed quotas."""
        self.tenant = tenant
        self.requests = _bucket(tenant.requests_per_minute, self.requests, now)
        self.tokens = _bucket(tenant.tokens_per_minute, self.tokens, now)

    def renew(self, gate: str, report: UsageReport, gates: int, now: float) -> LeaseGrant:
        """Process a gate's report, and lease what it requests; ``gates`` is the number of gates."""
        holding = self.holdings.setdefault(gate, _Holding())
        holding.slots, holding.reserved_tokens = report.slots, report.reserved_tokens
        grant = LeaseGrant(only_gate=gates == 1)
        if self.requests is not None:
            self._lease_requests(self.requests, report, grant, now)
        if self.tokens is not None:
            grant.tokens_left = self._charge_tokens(self.tokens, gate, report, now)
        self.used_tokens[gate] = report.used_tokens
        if self.tenant.max_concurrent_requests is not None:
            self._lease_slots(self.tenant.max_concurrent_requests, holding, report, grant, gates)
        return grant

    def _lease_requests(
        self, bucket: TokenBucket, report: UsageReport, grant: LeaseGrant, now: float
    ) -> None:
        bucket.refill(now)
        bucket.level = min(bucket.capacity, bucket.level + report.unused_requests)
        if report.wants_request:
            share = bucket.level if grant.only_gate else max(1, bucket.capacity // LEASE_SHARE)
            grant.requests = max(0, int(min(bucket.level, share)))
            bucket.level -= grant.requests
        grant.requests_left = bucket.level

    def _charge_tokens(
        self, bucket: TokenBucket, gate: str, report: UsageReport, now: float
    ) -> float:
        bucket.refill(now)
        bucket.level -= report.used_tokens - self.used_tokens.get(gate, 0)
        others = (holding for name, holding in self.holdings.items() if name != gate)
        return bucket.level - sum(holding.reserved_tokens for holding in others)

    def _lease_slots(
        self, limit: int, holding: _Holding, report: UsageReport, grant: LeaseGrant, gates: int
    ) -> None:
        share = limit if gates == 1 else limit // (4 * gates)
        grant.spare_slots = share
        if report.wants_slot:
            free = limit - sum(other.slots for other in self.holdings.values())
            grant.slots = max(0, min(free, max(1, share)))
            holding.slots += grant.slots


def _bucket(quota: int | None, old: TokenBucket | None, now: float) -> TokenBucket | None:
    if quota is None:
        return None
    if old is None:
        return TokenBucket(quota, now)
    old.refill(now)
    old.resize(quota)
    return old


class QuotaLedger:
    """The quotas and usage of all tenants of one service.

    Gates call it in their own process, or as a Ray actor (:mod:`serving.quotas.actor`). ``join``
    and ``renew`` are coroutines so that both look the same to a gate; they never wait.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._seen_at: dict[str, float] = {}
        self._usage: dict[str, dict[str, Usage]] = {}
        self._requests: dict[tuple[str, str], int] = {}
        self._used_at = clock()

    async def join(self, gate: str, tenants: Iterable[Tenant]) -> None:
        """Register a gate, or a change of its tenants; the latest tenants apply to every gate.

        From here on the gate's used tokens count from zero.
        """
        now = self._clock()
        self._seen_at[gate] = now
        wanted = {tenant.name: tenant for tenant in tenants}
        for name in self._accounts.keys() - wanted.keys():
            del self._accounts[name]
        for name, tenant in wanted.items():
            if name in self._accounts:
                self._accounts[name].change(tenant, now)
            else:
                self._accounts[name] = _Account(tenant, now)
            self._accounts[name].used_tokens.pop(gate, None)

    async def renew(
        self, gate: str, reports: dict[str, UsageReport]
    ) -> dict[str, LeaseGrant] | None:
        """Take one gate's reports and reply to each, by tenant's name.

        Returns:
            The grants; None if the gate must join (again) first.
        """
        now = self._clock()
        if gate not in self._seen_at:
            return None
        self._seen_at[gate] = now
        self._forget_silent_gates(now)
        grants = {}
        for name, report in reports.items():
            self._usage.setdefault(gate, {})[name] = report.usage
            self._note_use(gate, name, report, now)
            if name in self._accounts:
                account = self._accounts[name]
                grants[name] = account.renew(gate, report, len(self._seen_at), now)
        return grants

    def _note_use(self, gate: str, tenant: str, report: UsageReport, now: float) -> None:
        requests = report.usage.requests
        if report.running or requests != self._requests.get((gate, tenant), 0):
            self._used_at = now
        self._requests[gate, tenant] = requests

    def idle_s(self) -> float:
        """Return the seconds since a request was in progress, or since the ledger started."""
        return self._clock() - self._used_at

    def usage(self) -> dict[str, Usage]:
        """Return what each tenant has used through all gates, past ones included."""
        totals: dict[str, Usage] = {}
        for tenants in self._usage.values():
            for name, usage in tenants.items():
                totals.setdefault(name, Usage()).add(usage)
        return totals

    def _forget_silent_gates(self, now: float) -> None:
        for gate in [name for name, at in self._seen_at.items() if now - at > FORGET_S]:
            del self._seen_at[gate]
            for account in self._accounts.values():
                account.holdings.pop(gate, None)
