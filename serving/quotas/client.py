"""A gate's share of every tenant's quota: leased ahead, so that a request rarely waits for it.

While a lease lasts, a request costs no call to the book. With one gate the lease is all there is;
beside others it is a share (``quotas.LEASE_SHARE``), and what stays unused goes back after a
second. So all gates together never admit more requests a minute, or more at once, than the quota;
they may admit less by one share a gate for a second. Tokens are charged when known: a tenant can
overdraw by what its requests in progress cost beyond their reservation, plus what other gates admit
within ``STALE_S``, and pays it off before its next request. While the book cannot be reached each
gate holds the whole quota alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from serving.quotas.accounts import LeaseGrant, QuotaLedger, UsageReport
from serving.quotas.lease import IDLE_S, QuotaLease
from serving.spec.tenants import Tenant

SYNC_S = 0.25
HEARTBEAT_S = 1.0
ANSWER_S = 1.0
"""A book that takes longer counts as out of reach."""
AWAY_S = 5.0
"""So long a gate goes on alone before it tries again."""
STALE_S = 1.0
"""What a gate knows of a tenant is asked anew after so long; of one that calls it is kept fresh."""
RETRIES, RETRY_S = 3, 0.02
"""What another gate just freed is on its way back."""

log = logging.getLogger("serving.quotas.client")


class RemoteBook(Protocol):
    """Where the book is, in this process or another."""

    async def join(self, gate: str, tenants: Iterable[Tenant]) -> None: ...

    async def deal(
        self, gate: str, reports: dict[str, UsageReport]
    ) -> dict[str, LeaseGrant] | None: ...


class LocalBook:
    """A book in this process."""

    def __init__(self, book: QuotaLedger | None = None) -> None:
        self.book = book or QuotaLedger()

    async def join(self, gate: str, tenants: Iterable[Tenant]) -> None:
        self.book.join(gate, tenants)

    async def deal(
        self, gate: str, reports: dict[str, UsageReport]
    ) -> dict[str, LeaseGrant] | None:
        return self.book.deal(gate, reports)


class OverQuotaError(Exception):
    """A quota is used up: which one, its size, and the seconds until the next request fits."""

    def __init__(self, quota: str, limit: int, retry_s: float) -> None:
        super().__init__(quota)
        self.quota, self.limit, self.retry_s = quota, limit, retry_s


class QuotaClients:
    """Every tenant's purse at one gate, kept in step with the book."""

    def __init__(
        self,
        gate: str,
        book: RemoteBook,
        tenants: Callable[[], tuple[Tenant, ...]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gate, self._book, self._current, self._clock = gate, book, tenants, clock
        self._alone = LocalBook(QuotaLedger(clock))
        self._purses: dict[str, QuotaLease] = {}
        self._tenants: tuple[Tenant, ...] = ()
        self._at: RemoteBook | None = None
        self._away_until = float("-inf")
        self._lock = asyncio.Lock()
        self._soon = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def purse(self, tenant: Tenant) -> QuotaLease:
        """The tenant's purse at this gate."""
        purse = self._purses.setdefault(tenant.name, QuotaLease(tenant))
        purse.tenant = tenant
        return purse

    def start(self) -> None:
        """Follow the tenants that hold now, and keep in step with the book, from here on."""
        self._follow()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep_in_step())

    def _follow(self) -> None:
        tenants = self._current()
        if tenants is not self._tenants:
            self._tenants, self._at = tenants, None
            for tenant in tenants:
                self.purse(tenant).refused_until = 0.0

    def close(self) -> None:
        """Stop keeping in step with the book."""
        if self._task is not None:
            self._task.cancel()

    async def admit(self, purse: QuotaLease, tokens: int) -> None:
        """Take one request and one place, and reserve ``tokens``.

        Raises:
            OverQuotaError: one of the quotas is used up.
        """
        if purse.limited:
            if self._at is None or self._clock() - purse.synced_at > STALE_S:
                await self._ask(purse)
            self._check_tokens(purse, tokens)
            await self._need_place(purse)
        purse.running += 1  # at once: while we await, another would take the same place
        try:
            await self._need_request(purse)
            # Nothing is awaited from here on, so what was there is still there.
            self._check_tokens(purse, tokens)
        except BaseException:
            purse.running -= 1
            raise
        purse.used_at = self._clock()
        if purse.limited:
            purse.requests -= purse.tenant.requests_per_minute is not None
            purse.reserved += tokens if purse.tenant.tokens_per_minute else 0
            self._fetch_ahead(purse)

    def leave(self, purse: QuotaLease, reserved: int, spent: int) -> None:
        """One request has ended: what was reserved for it, and what it cost."""
        purse.running -= 1
        purse.dirty = True
        if purse.tenant.tokens_per_minute:
            purse.reserved -= reserved
            purse.spent += spent
        idle = purse.places - purse.running
        if purse.tenant.max_concurrent_requests and idle > purse.grant.keep_places:
            self._soon.set()  # another gate may be waiting for the place

    def give_back(self, purse: QuotaLease) -> None:
        """The request that was admitted last was not served."""
        purse.requests += purse.tenant.requests_per_minute is not None

    def _check_tokens(self, purse: QuotaLease, tokens: int) -> None:
        quota = purse.tenant.tokens_per_minute
        if quota is None:
            return
        left, needed = purse.tokens(self._clock()), min(max(1, tokens), quota)
        if left < needed - 1e-6:
            raise OverQuotaError("tokens", quota, (needed - left) * 60 / quota)

    async def _need_place(self, purse: QuotaLease) -> None:
        limit = purse.tenant.max_concurrent_requests
        if limit is None:
            return
        for tried in range(RETRIES + 1):
            if purse.running < purse.places:
                return
            if tried:
                await asyncio.sleep(RETRY_S)
            await self._ask(purse, place=True, request=purse.requests < 1)
            if purse.grant.alone:
                break
        if purse.running >= purse.places:
            raise OverQuotaError("concurrent requests", limit, 1.0)

    async def _need_request(self, purse: QuotaLease) -> None:
        quota = purse.tenant.requests_per_minute
        if quota is None or purse.requests >= 1:
            return
        if self._clock() >= purse.refused_until:
            await self._ask(purse, request=True)
        if purse.requests < 1:
            now = self._clock()
            wait = max(RETRY_S, (1 - purse.requests_left(now)) * 60 / quota)
            if now >= purse.refused_until:
                # A flood is refused here; the book is asked again when there may be something.
                purse.refused_until = now + min(IDLE_S, wait)
            raise OverQuotaError("requests", quota, wait)

    def _fetch_ahead(self, purse: QuotaLease) -> None:
        if purse.tenant.requests_per_minute and purse.requests < purse.lease // 4:
            purse.wants_request = True
            self._soon.set()

    async def _ask(self, purse: QuotaLease, *, request: bool = False, place: bool = False) -> None:
        """Ask the book now, unless what we want came while another request asked."""
        async with self._lock:
            if (request and purse.requests >= 1) or (place and purse.running < purse.places):
                return
            purse.wants_request |= request and purse.tenant.requests_per_minute is not None
            purse.wants_place |= place
            purse.dirty = True
            await self._sync()

    async def _sync(self) -> None:
        if self._clock() >= self._away_until:
            wants = [(p, p.wants_request, p.wants_place) for p in self._purses.values()]
            try:
                return await asyncio.wait_for(self._deal(self._book), ANSWER_S)
            except Exception as error:
                log.warning("quotas: the book is out of reach (%s)", type(error).__name__)
            self._away_until = self._clock() + AWAY_S
            for purse, request, place in wants:
                purse.wants_request, purse.wants_place, purse.dirty = request, place, True
        await self._deal(self._alone)

    async def _deal(self, book: RemoteBook) -> None:
        if self._at is not book:
            self._at = None
            await book.join(self._gate, self._tenants)
            for purse in self._purses.values():
                purse.spent, purse.told, purse.dirty = purse.spent - purse.told, 0, True
            self._at = book
        now = self._clock()
        purses = [purse for purse in self._purses.values() if purse.to_tell(now)]
        told = {purse.tenant.name: purse.spent for purse in purses}
        reports = {purse.tenant.name: purse.report(now) for purse in purses}
        grants = await book.deal(self._gate, reports)
        self._at = self._at if grants is not None else None
        for name, grant in (grants or {}).items():
            self._purses[name].take(grant, told[name], self._clock())

    async def _keep_in_step(self) -> None:
        """Tell the book what was used, fetch what comes in, hand back what lies idle."""
        beat = self._clock()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._soon.wait(), SYNC_S)
            self._soon.clear()
            self._follow()
            now = self._clock()
            busy = [purse for purse in self._purses.values() if purse.to_tell(now)]
            if not busy and self._at is not None and now - beat < HEARTBEAT_S:
                continue
            beat = now
            for purse in busy:
                quota = purse.tenant.requests_per_minute or 0
                purse.wants_request |= purse.grant.alone and purse.requests < quota // 4
            async with self._lock:
                await self._sync()
