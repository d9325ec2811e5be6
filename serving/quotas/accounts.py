"""Quotas over all gates of a service: one book, from which the gates lease. Pure; clocks passed in.

Requests and places for concurrent requests are leased, so that all gates together never admit more
than the quota. Tokens are known only when an answer has ended: a request reserves what it may cost,
is charged what it did cost, and a debt is paid off before the next one is admitted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from serving.spec.tenants import Tenant

LEASE_SHARE = 20
"""A gate beside others leases a twentieth of a minute's requests at once."""

FORGET_S = 5.0
"""A gate not heard of for so long is gone: its reservations and places are free again."""


@dataclass
class TokenBucket:
    """A minute's quota that refills evenly and never holds more; below zero it is in debt."""

    capacity: float
    at: float
    level: float = field(init=False)

    def __post_init__(self) -> None:
        self.level = self.capacity

    def refill(self, now: float) -> None:
        """Add what has come in since the last time."""
        gained = (now - self.at) * self.capacity / 60
        self.level, self.at = min(self.capacity, self.level + gained), now

    def resize(self, capacity: float) -> None:
        """A changed quota: what was spent stays spent."""
        self.level, self.capacity = self.level + capacity - self.capacity, capacity

    def wait_s(self, amount: float) -> float:
        """Seconds until ``amount`` is there; a full bucket is enough for any."""
        return max(0.0, min(amount, self.capacity) - self.level) * 60 / self.capacity


@dataclass
class Usage:
    """What one tenant has used, in counts since the service began."""

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    shed: int = 0
    refused: int = 0
    errors: int = 0

    def add(self, other: Usage) -> None:
        """Count another record into this one."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class UsageReport:
    """One gate's account of one tenant.

    Totals since it joined, except ``unused_requests``: a lost answer does no harm.
    """

    wants_request: bool = False
    wants_place: bool = False
    unused_requests: int = 0
    places: int = 0
    reserved_tokens: int = 0
    spent_tokens: int = 0
    usage: Usage = field(default_factory=Usage)


@dataclass
class LeaseGrant:
    """The book's answer: what is leased, and how the tenant stands."""

    requests: int = 0
    places: int = 0
    keep_places: int = 0
    alone: bool = True
    requests_left: float = 0.0
    tokens_left: float = 0.0


@dataclass
class _Gate:
    """What the book knows of one gate's dealings with one tenant."""

    places: int = 0
    reserved: int = 0


class _Account:
    """One tenant's buckets, and what each gate holds of them."""

    def __init__(self, tenant: Tenant, now: float) -> None:
        self.tenant = tenant
        self.requests = _bucket(tenant.requests_per_minute, None, now)
        self.tokens = _bucket(tenant.tokens_per_minute, None, now)
        self.gates: dict[str, _Gate] = {}
        self.spent: dict[str, int] = {}

    def change(self, tenant: Tenant, now: float) -> None:
        self.tenant = tenant
        self.requests = _bucket(tenant.requests_per_minute, self.requests, now)
        self.tokens = _bucket(tenant.tokens_per_minute, self.tokens, now)

    def deal(self, gate: str, report: UsageReport, gates: int, now: float) -> LeaseGrant:
        held = self.gates.setdefault(gate, _Gate())
        held.places, held.reserved = report.places, report.reserved_tokens
        grant = LeaseGrant(alone=gates == 1)
        if self.requests is not None:
            self._lease_requests(self.requests, report, grant, now)
        if self.tokens is not None:
            self.tokens.refill(now)
            self.tokens.level -= report.spent_tokens - self.spent.get(gate, 0)
            others = sum(one.reserved for name, one in self.gates.items() if name != gate)
            grant.tokens_left = self.tokens.level - others
        self.spent[gate] = report.spent_tokens
        if self.tenant.max_concurrent_requests is not None:
            self._lease_places(self.tenant.max_concurrent_requests, held, report, grant, gates)
        return grant

    def _lease_requests(
        self, bucket: TokenBucket, report: UsageReport, grant: LeaseGrant, now: float
    ) -> None:
        bucket.refill(now)
        bucket.level = min(bucket.capacity, bucket.level + report.unused_requests)
        if report.wants_request:
            share = bucket.level if grant.alone else max(1, bucket.capacity // LEASE_SHARE)
            grant.requests = max(0, int(min(bucket.level, share)))
            bucket.level -= grant.requests
        grant.requests_left = bucket.level

    def _lease_places(
        self, limit: int, held: _Gate, report: UsageReport, grant: LeaseGrant, gates: int
    ) -> None:
        share = limit if gates == 1 else limit // (4 * gates)
        grant.keep_places = share
        if report.wants_place:
            free = limit - sum(one.places for one in self.gates.values())
            grant.places = max(0, min(free, max(1, share)))
            held.places += grant.places


def _bucket(quota: int | None, old: TokenBucket | None, now: float) -> TokenBucket | None:
    if quota is None:
        return None
    if old is None:
        return TokenBucket(quota, now)
    old.refill(now)
    old.resize(quota)
    return old


class QuotaLedger:
    """The one account of every tenant's quota and usage."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._seen: dict[str, float] = {}
        self._usage: dict[str, dict[str, Usage]] = {}

    def join(self, gate: str, tenants: Iterable[Tenant]) -> None:
        """A gate begins, or its tenants have changed; the last word holds for every gate.

        From here on its spent tokens count from zero.
        """
        now = self._clock()
        self._seen[gate] = now
        wanted = {tenant.name: tenant for tenant in tenants}
        for name in self._accounts.keys() - wanted.keys():
            del self._accounts[name]
        for name, tenant in wanted.items():
            if name in self._accounts:
                self._accounts[name].change(tenant, now)
            else:
                self._accounts[name] = _Account(tenant, now)
            self._accounts[name].spent.pop(gate, None)

    def deal(self, gate: str, reports: dict[str, UsageReport]) -> dict[str, LeaseGrant] | None:
        """Take one gate's reports and answer each; None asks it to join (again) first."""
        now = self._clock()
        if gate not in self._seen:
            return None
        self._seen[gate] = now
        self._forget(now)
        grants = {}
        for name, report in reports.items():
            self._usage.setdefault(gate, {})[name] = report.usage
            if name in self._accounts:
                account = self._accounts[name]
                grants[name] = account.deal(gate, report, len(self._seen), now)
        return grants

    def usage(self) -> dict[str, Usage]:
        """What each tenant has used through every gate there ever was."""
        totals: dict[str, Usage] = {}
        for tenants in self._usage.values():
            for name, usage in tenants.items():
                totals.setdefault(name, Usage()).add(usage)
        return totals

    def _forget(self, now: float) -> None:
        for gate in [name for name, seen in self._seen.items() if now - seen > FORGET_S]:
            del self._seen[gate]
            for account in self._accounts.values():
                account.gates.pop(gate, None)
