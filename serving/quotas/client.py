"""A gate's share of every tenant's quota, leased ahead so that a request rarely waits for it.

While a lease lasts, a request needs no call to the ledger. A single gate leases the whole quota.
One of several gates leases a share (``accounts.LEASE_SHARE``), and returns unused requests after a
second. So all gates together never admit more requests per minute, or more at once, than the quota.
They may admit less, by one share per gate for a second. Tokens are charged when known: a tenant can
exceed its quota by the cost of its requests in progress beyond their reservation, plus the requests
that other gates admit within ``GRANT_MAX_AGE_S``. Its next request waits until that is paid off.
While the ledger cannot be reached, each gate enforces the whole quota by itself.
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
LEDGER_TIMEOUT_S = 1.0
"""Seconds after which a ledger that has not replied counts as unreachable."""
LEDGER_RETRY_S = 5.0
"""Seconds for which a gate works alone before it tries an unreachable ledger again."""
GRANT_MAX_AGE_S = 1.0
"""Age in seconds at which a grant is renewed before a request is admitted."""
RETRIES, RETRY_S = 3, 0.02
"""Retries, and seconds between them, to get a slot that another gate has just freed."""

logger = logging.getLogger(__name__)


class Ledger(Protocol):
    """A :class:`QuotaLedger` in this process or in another one."""

    async def join(self, gate: str, tenants: Iterable[Tenant]) -> None:
        """Register a gate, or a change of its tenants."""

    async def renew(
        self, gate: str, reports: dict[str, UsageReport]
    ) -> dict[str, LeaseGrant] | None:
        """Report what was used, and lease; None if the gate must join first."""


class OverQuotaError(Exception):
    """A quota is used up.

    Args:
        quota: Which one: ``requests``, ``tokens`` or ``concurrent requests``.
        limit: Its size.
        retry_s: Seconds until the next request fits.
    """

    def __init__(self, quota: str, limit: int, retry_s: float) -> None:
        super().__init__(quota)
        self.quota, self.limit, self.retry_s = quota, limit, retry_s


class QuotaClient:
    """Every tenant's lease at one gate, kept in sync with the ledger.

    Args:
        gate: The gate's unique id.
        ledger: The ledger shared by the service's gates.
        tenants: Returns the tenants that the gate knows now.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        gate: str,
        ledger: Ledger,
        tenants: Callable[[], tuple[Tenant, ...]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gate, self._ledger, self._clock = gate, ledger, clock
        self._current_tenants = tenants
        self._fallback = QuotaLedger(clock)
        self._leases: dict[str, QuotaLease] = {}
        self._tenants: tuple[Tenant, ...] = ()
        self._joined: Ledger | None = None
        self._unreachable_until = float("-inf")
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def lease(self, tenant: Tenant) -> QuotaLease:
        """Return the tenant's lease at this gate."""
        lease = self._leases.setdefault(tenant.name, QuotaLease(tenant))
        lease.tenant = tenant
        return lease

    def start(self) -> None:
        """Apply a change of tenants, and start to sync with the ledger in the background."""
        self._update_tenants()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._sync_forever())

    def _update_tenants(self) -> None:
        tenants = self._current_tenants()
        if tenants is not self._tenants:
            self._tenants, self._joined = tenants, None
            for tenant in tenants:
                self.lease(tenant).refused_until = 0.0

    def close(self) -> None:
        """Stop syncing."""
        if self._task is not None:
            self._task.cancel()

    async def admit(self, lease: QuotaLease, tokens: int) -> None:
        """Take one request and one slot, and reserve ``tokens``.

        Raises:
            OverQuotaError: One of the quotas is used up.
        """
        if lease.limited:
            if self._joined is None or self._clock() - lease.synced_at > GRANT_MAX_AGE_S:
                await self._ask(lease)
            self._check_tokens(lease, tokens)
            await self._ensure_slot(lease)
        lease.running += 1  # before the next await, or another request would take the same slot
        try:
            await self._ensure_request(lease)
            # Nothing is awaited from here on, so the checks above stay true.
            self._check_tokens(lease, tokens)
        except BaseException:
            lease.running -= 1
            raise
        lease.last_request_at = self._clock()
        if lease.limited:
            lease.requests -= lease.tenant.requests_per_minute is not None
            lease.reserved_tokens += tokens if lease.tenant.tokens_per_minute else 0
            self._prefetch(lease)

    def release(self, lease: QuotaLease, reserved: int, used: int) -> None:
        """End an admitted request: free its slot and its reserved tokens, charge the used ones."""
        lease.running -= 1
        lease.dirty = True
        if lease.tenant.tokens_per_minute:
            lease.reserved_tokens -= reserved
            lease.used_tokens += used
        idle = lease.slots - lease.running
        if lease.tenant.max_concurrent_requests and idle > lease.grant.spare_slots:
            self._wake.set()  # another gate may be waiting for the slot

    def refund(self, lease: QuotaLease) -> None:
        """Give one request back: the one admitted last was not served."""
        lease.requests += lease.tenant.requests_per_minute is not None

    def _check_tokens(self, lease: QuotaLease, tokens: int) -> None:
        quota = lease.tenant.tokens_per_minute
        if quota is None:
            return
        left, needed = lease.tokens_left(self._clock()), min(max(1, tokens), quota)
        if left < needed - 1e-6:
            raise OverQuotaError("tokens", quota, (needed - left) * 60 / quota)

    async def _ensure_slot(self, lease: QuotaLease) -> None:
        limit = lease.tenant.max_concurrent_requests
        if limit is None:
            return
        for attempt in range(RETRIES + 1):
            if lease.running < lease.slots:
                return
            if attempt:
                await asyncio.sleep(RETRY_S)
            await self._ask(lease, slot=True, request=lease.requests < 1)
            if lease.grant.only_gate:
                break
        if lease.running >= lease.slots:
            raise OverQuotaError("concurrent requests", limit, 1.0)

    async def _ensure_request(self, lease: QuotaLease) -> None:
        quota = lease.tenant.requests_per_minute
        if quota is None or lease.requests >= 1:
            return
        if self._clock() >= lease.refused_until:
            await self._ask(lease, request=True)
        if lease.requests < 1:
            now = self._clock()
            wait_s = max(RETRY_S, (1 - lease.requests_left(now)) * 60 / quota)
            if now >= lease.refused_until:
                # Refuse a flood here; ask the ledger again once it may have something.
                lease.refused_until = now + min(IDLE_S, wait_s)
            raise OverQuotaError("requests", quota, wait_s)

    def _prefetch(self, lease: QuotaLease) -> None:
        if lease.tenant.requests_per_minute and lease.requests < lease.lease_size // 4:
            lease.wants_request = True
            self._wake.set()

    async def _ask(self, lease: QuotaLease, *, request: bool = False, slot: bool = False) -> None:
        """Ask the ledger now, unless another request's call has just brought what is wanted."""
        async with self._lock:
            if (request and lease.requests >= 1) or (slot and lease.running < lease.slots):
                return
            lease.wants_request |= request and lease.tenant.requests_per_minute is not None
            lease.wants_slot |= slot
            lease.dirty = True
            await self._sync()

    async def _sync(self) -> None:
        if self._clock() >= self._unreachable_until:
            wants = [(e, e.wants_request, e.wants_slot) for e in self._leases.values()]
            try:
                return await asyncio.wait_for(self._renew(self._ledger), LEDGER_TIMEOUT_S)
            except Exception as error:
                logger.warning(
                    "quotas: the ledger cannot be reached (%s); this gate enforces them alone",
                    type(error).__name__,
                )
            self._unreachable_until = self._clock() + LEDGER_RETRY_S
            for lease, request, slot in wants:
                lease.wants_request, lease.wants_slot, lease.dirty = request, slot, True
        await self._renew(self._fallback)

    async def _renew(self, ledger: Ledger) -> None:
        if self._joined is not ledger:
            await self._join(ledger)
        now = self._clock()
        # A long request is reported at each heartbeat, so that its service does not count as idle.
        leases = [e for e in self._leases.values() if e.running or e.needs_sync(now)]
        used = {lease.tenant.name: lease.used_tokens for lease in leases}
        reports = {lease.tenant.name: lease.report(now) for lease in leases}
        grants = await ledger.renew(self._gate, reports)
        self._joined = self._joined if grants is not None else None
        for name, grant in (grants or {}).items():
            self._leases[name].apply_grant(grant, used[name], self._clock())

    async def _join(self, ledger: Ledger) -> None:
        self._joined = None
        await ledger.join(self._gate, self._tenants)
        for lease in self._leases.values():
            lease.used_tokens -= lease.reported_tokens  # the ledger now counts from zero
            lease.reported_tokens, lease.dirty = 0, True
        self._joined = ledger

    async def _sync_forever(self) -> None:
        """Report what was used, fetch what has accrued, and hand back what is idle."""
        last_sync = self._clock()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), SYNC_S)
            self._wake.clear()
            self._update_tenants()
            now = self._clock()
            pending = [lease for lease in self._leases.values() if lease.needs_sync(now)]
            if not pending and self._joined is not None and now - last_sync < HEARTBEAT_S:
                continue
            last_sync = now
            for lease in pending:
                quota = lease.tenant.requests_per_minute or 0
                lease.wants_request |= lease.grant.only_gate and lease.requests < quota // 4
            async with self._lock:
                await self._sync()
