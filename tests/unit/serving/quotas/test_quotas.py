"""Quotas over several gates, on a simulated clock. Ground truth: a count of admitted requests.

The gates are real quota clients and share one ledger, like the gates of several replicas.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.quotas.accounts import (
    FORGET_S,
    LEASE_SHARE,
    LeaseGrant,
    QuotaLedger,
    TokenBucket,
    UsageReport,
)
from serving.quotas.client import GRANT_MAX_AGE_S, SYNC_S, OverQuotaError, QuotaClient
from serving.spec.tenants import Tenant


@pytest.fixture(autouse=True)
def no_real_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.quotas.client.RETRY_S", 0)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Service:
    """Several gates of one service; `ask` goes to them in turn, as round robin would."""

    gates: int
    tenant: Tenant
    clock: Clock = field(default_factory=Clock)
    ledger: QuotaLedger = field(init=False)
    each: list[QuotaClient] = field(init=False)
    turn: int = 0

    def __post_init__(self) -> None:
        self.ledger = QuotaLedger(self.clock)
        self.each = [self.gate(str(number)) for number in range(self.gates)]

    def gate(self, name: str) -> QuotaClient:
        gate = QuotaClient(name, self.ledger, lambda: (self.tenant,), self.clock)
        gate._update_tenants()
        return gate

    async def join(self) -> None:
        for gate in self.each:
            await gate._sync()

    async def ask(self, tokens: int = 0, used: int | None = None) -> OverQuotaError | None:
        """Send one request, which ends at once (or keeps running, without `used`)."""
        gate = self.each[self.turn % len(self.each)]
        self.turn += 1
        lease = gate.lease(self.tenant)
        try:
            await gate.admit(lease, tokens)
        except OverQuotaError as error:
            return error
        if used is not None:
            gate.release(lease, tokens, used)
        return None

    async def heartbeat(self) -> None:
        """Advance the clock by a second, after which each gate reports in any case."""
        self.clock.now += 1.0
        for gate in self.each:
            await gate._sync()

    async def tick(self, seconds: float = SYNC_S) -> None:
        """Advance the clock, and sync each gate as its own task would."""
        self.clock.now += seconds
        for gate in self.each:
            await gate._sync()


async def admitted(service: Service, asked: int) -> int:
    return [await service.ask(used=0) for _ in range(asked)].count(None)


class TestTokenBucket:
    def test_a_bucket_refills_evenly_up_to_its_capacity(self) -> None:
        bucket = TokenBucket(60, updated_at=0)
        bucket.level = 0
        bucket.refill(7.5)
        assert bucket.level == 7.5
        bucket.refill(1000)
        assert bucket.level == 60

    def test_waiting_time(self) -> None:
        bucket = TokenBucket(120, updated_at=0)
        bucket.level = -10
        assert bucket.wait_s(1) == pytest.approx(5.5)
        assert bucket.wait_s(10_000) == pytest.approx(65)

    def test_a_resized_bucket_keeps_what_was_spent(self) -> None:
        bucket = TokenBucket(60, updated_at=0)
        bucket.level = 10
        bucket.resize(100)
        assert (bucket.level, bucket.capacity) == (50, 100)
        bucket.resize(20)
        assert bucket.level == -30


class TestRequestsPerMinute:
    @pytest.mark.parametrize("gates", [1, 2, 3, 5])
    @pytest.mark.parametrize("quota", [1, 5, 60, 1000])
    def test_all_gates_together_admit_the_quota(self, gates: int, quota: int) -> None:
        async def scenario() -> int:
            service = Service(gates, Tenant(name="a", requests_per_minute=quota))
            await service.join()
            return await admitted(service, 2 * quota + 50)

        least = quota - gates * max(1, quota // LEASE_SHARE)
        assert max(1, least) <= asyncio.run(scenario()) <= quota

    @pytest.mark.parametrize("gates", [1, 2])
    def test_over_time_the_quota_and_what_accrues_are_admitted(self, gates: int) -> None:
        async def scenario() -> None:
            service = Service(gates, Tenant(name="a", requests_per_minute=60))
            await service.join()
            began, count = service.clock.now, 0
            for _ in range(600):
                count += await admitted(service, 3)
                assert count <= 60 + (service.clock.now - began) + 1e-6
                await service.tick(0.25)
            # What accrued was available.
            assert count >= 60 + 150 - 2 * gates * 3

        asyncio.run(scenario())

    def test_unused_requests_go_to_another_gate_after_a_second(self) -> None:
        async def scenario() -> None:
            service = Service(2, Tenant(name="a", requests_per_minute=100))
            await service.join()
            assert await service.ask(used=0) is None  # leases a share at the first gate
            service.turn = 1
            second = service.each[1]
            for _ in range(2):
                await service.tick(0.6)
            lease = second.lease(service.tenant)
            count = 0
            while lease.requests or count < 99:
                try:
                    await second.admit(lease, 0)
                except OverQuotaError:
                    break
                second.release(lease, 0, 0)
                count += 1
            assert count >= 99

        asyncio.run(scenario())

    def test_an_error_says_when_the_next_request_fits(self) -> None:
        async def scenario() -> None:
            service = Service(2, Tenant(name="a", requests_per_minute=6))
            await service.join()
            assert await admitted(service, 6) == 6
            error = await service.ask(used=0)
            assert error is not None
            assert (error.quota, error.limit) == ("requests", 6)
            assert 0 < error.retry_s <= 10
            service.clock.now += error.retry_s + 1e-3
            assert await service.ask(used=0) is None

        asyncio.run(scenario())


class TestConcurrentRequests:
    @pytest.mark.parametrize("gates", [1, 2, 3])
    @pytest.mark.parametrize("limit", [1, 4, 30])
    def test_the_limit_holds_and_slots_can_be_used_again(self, gates: int, limit: int) -> None:
        async def scenario() -> None:
            service = Service(gates, Tenant(name="a", max_concurrent_requests=limit))
            await service.join()
            for _ in range(3):
                asked = [await service.ask() for _ in range(limit + 10)]
                inside = sum(gate.lease(service.tenant).running for gate in service.each)
                assert asked.count(None) == inside
                assert max(1, limit - gates * (limit // (4 * gates))) <= inside <= limit
                for gate in service.each:
                    lease = gate.lease(service.tenant)
                    while lease.running:
                        gate.release(lease, 0, 0)
                await service.tick()
                await service.tick()

        asyncio.run(scenario())

    def test_requests_that_wait_for_the_ledger_together_do_not_share_a_slot(self) -> None:
        async def scenario() -> None:
            tenant = Tenant(name="a", max_concurrent_requests=1, requests_per_minute=2)
            service = Service(1, tenant)
            renew = service.ledger.renew

            async def slow_renew(gate: str, reports: Any) -> Any:
                await asyncio.sleep(0)
                return await renew(gate, reports)

            service.ledger.renew = slow_renew  # type: ignore[method-assign]
            assert [await service.ask(used=0) for _ in range(2)] == [None, None]
            service.clock.now += 60  # the slot is still leased, and two requests have accrued
            asked = await asyncio.gather(*(service.ask() for _ in range(4)))
            assert asked.count(None) == 1
            assert service.each[0].lease(tenant).running == 1

        asyncio.run(scenario())

    def test_a_slot_freed_at_one_gate_can_be_used_at_another(self) -> None:
        async def scenario() -> None:
            service = Service(2, Tenant(name="a", max_concurrent_requests=1))
            await service.join()
            for _ in range(6):
                assert await service.ask(used=0) is None
                await service.tick(0)  # the sync that a freed slot triggers

        asyncio.run(scenario())

    def test_slots_of_a_dead_gate_are_free_again(self) -> None:
        async def scenario() -> None:
            service = Service(2, Tenant(name="a", max_concurrent_requests=2))
            await service.join()
            dead = service.each.pop(0)
            lease = dead.lease(service.tenant)
            await dead.admit(lease, 0)
            await dead.admit(lease, 0)
            assert await service.ask() is not None
            service.clock.now += FORGET_S + 1
            assert await service.ask() is None

        asyncio.run(scenario())


class TestTokensPerMinute:
    def test_debt_is_paid_off_before_the_next_request(self) -> None:
        async def scenario() -> None:
            service = Service(2, Tenant(name="a", tokens_per_minute=600))
            await service.join()
            assert await service.ask(tokens=10, used=1200) is None
            await service.tick(GRANT_MAX_AGE_S + 0.1)
            error = await service.ask(tokens=10, used=0)
            assert error is not None
            assert error.quota == "tokens"
            assert error.retry_s == pytest.approx((600 + 10) / 10)
            await service.tick(error.retry_s - 1)
            assert await service.ask(tokens=10, used=0) is not None
            await service.tick(1.1)
            assert await service.ask(tokens=10, used=0) is None

        asyncio.run(scenario())

    def test_tokens_are_reserved_at_every_gate(self) -> None:
        async def scenario() -> None:
            service = Service(2, Tenant(name="a", tokens_per_minute=1000))
            await service.join()
            asked = []
            for _ in range(8):
                asked.append(await service.ask(tokens=250))
                await service.tick(GRANT_MAX_AGE_S + 0.1)
                await service.tick(0)  # each gate now knows the other's report
            assert asked.count(None) == 4

        asyncio.run(scenario())

    def test_a_request_larger_than_the_quota_needs_the_whole_quota(self) -> None:
        async def scenario() -> None:
            service = Service(1, Tenant(name="a", tokens_per_minute=100))
            await service.join()
            assert await service.ask(tokens=5000, used=40) is None
            assert await service.ask(tokens=5000, used=40) is not None

        asyncio.run(scenario())

    @settings(max_examples=30)
    @given(costs=st.lists(st.integers(1, 400), min_size=20, max_size=60), gates=st.integers(1, 3))
    def test_in_the_long_run_the_quota_holds(self, costs: list[int], gates: int) -> None:
        async def scenario() -> None:
            service = Service(gates, Tenant(name="a", tokens_per_minute=600))
            await service.join()
            began, used = service.clock.now, 0
            for cost in costs:
                if await service.ask(tokens=1, used=cost) is None:
                    used += cost
                await service.tick(0.25)
                # One request beyond its reservation at each gate.
                allowed = 600 + (service.clock.now - began) * 10 + gates * 400
                assert used <= allowed

        asyncio.run(scenario())


class TestChanges:
    def test_a_raised_quota_applies_at_once(self) -> None:
        async def scenario() -> None:
            service = Service(2, Tenant(name="a", requests_per_minute=5))
            await service.join()
            assert await admitted(service, 20) == 5
            service.tenant = Tenant(name="a", requests_per_minute=50)
            for gate in service.each:
                gate._update_tenants()
            await service.join()
            assert 40 <= await admitted(service, 100) <= 45

        asyncio.run(scenario())

    def test_a_second_gate_gets_a_share_of_what_the_first_held(self) -> None:
        async def scenario() -> None:
            service = Service(1, Tenant(name="a", requests_per_minute=1000))
            await service.join()
            await service.ask(used=0)
            service.each.append(service.gate("late"))
            for _ in range(8):
                await service.tick()
            assert await admitted(service, 1500) >= 900

        asyncio.run(scenario())


class UnreliableLedger:
    """A ledger that cannot be reached while `gone`."""

    def __init__(self, ledger: QuotaLedger) -> None:
        self._ledger, self.gone = ledger, False

    async def join(self, gate: str, tenants: Iterable[Tenant]) -> None:
        if self.gone:
            raise OSError
        await self._ledger.join(gate, tenants)

    async def renew(
        self, gate: str, reports: dict[str, UsageReport]
    ) -> dict[str, LeaseGrant] | None:
        if self.gone:
            raise OSError
        return await self._ledger.renew(gate, reports)


def test_without_the_ledger_a_gate_enforces_the_quota_by_itself_and_reconnects() -> None:
    async def scenario() -> None:
        clock = Clock()
        tenant = Tenant(name="a", requests_per_minute=10)
        ledger = QuotaLedger(clock)
        unreliable = UnreliableLedger(ledger)
        gate = QuotaClient("one", unreliable, lambda: (tenant,), clock)
        gate._update_tenants()
        lease = gate.lease(tenant)
        unreliable.gone = True
        passed = 0
        for _ in range(30):
            try:
                await gate.admit(lease, 0)
            except OverQuotaError:
                continue
            gate.release(lease, 0, 7)
            lease.charge((3, 4), failed=False)
            passed += 1
        assert passed == 10
        unreliable.gone = False
        clock.now += 60
        await gate._sync()
        # No usage is lost.
        assert ledger.usage()["a"].requests == 10
        assert ledger.usage()["a"].output_tokens == 40

    asyncio.run(scenario())


def test_usage_outlives_a_gate() -> None:
    async def scenario() -> None:
        service = Service(2, Tenant(name="a"))
        for gate in service.each:
            lease = gate.lease(service.tenant)
            await gate.admit(lease, 0)
            gate.release(lease, 0, lease.charge((5, 6), failed=False))
        await service.tick()
        service.each.pop()
        await service.tick(FORGET_S * 3)
        usage = service.ledger.usage()["a"]
        assert (usage.requests, usage.prompt_tokens, usage.output_tokens) == (2, 10, 12)

    asyncio.run(scenario())


def test_a_service_is_idle_while_no_request_is_in_progress() -> None:
    """Ground truth: the times at which the test starts and ends its requests."""

    async def scenario() -> None:
        service = Service(2, Tenant(name="owner"))
        await service.join()
        await service.tick(30)
        assert service.ledger.idle_s() == 30
        lease = service.each[0].lease(service.tenant)
        await service.each[0].admit(lease, 0)  # a request that takes three minutes
        for _ in range(180):
            await service.heartbeat()
        assert service.ledger.idle_s() <= 1
        service.each[0].release(lease, 0, 0)
        lease.charge((1, 1), failed=False)
        await service.heartbeat()
        for _ in range(20):
            await service.heartbeat()
        assert service.ledger.idle_s() == 20

    asyncio.run(scenario())


def test_a_short_request_between_two_reports_ends_the_idle_time() -> None:
    async def scenario() -> None:
        service = Service(1, Tenant(name="owner", requests_per_minute=10))
        await service.join()
        for _ in range(60):
            await service.heartbeat()
        assert service.ledger.idle_s() == 60
        service.each[0].lease(service.tenant).count("shed")
        await service.heartbeat()
        assert service.ledger.idle_s() == 0

    asyncio.run(scenario())
