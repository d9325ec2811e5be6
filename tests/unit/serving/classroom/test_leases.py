"""The rules of a class, with the test's own clock. Expected sums are worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from serving.classroom.leases import Lease, LeaseRegistry, ReplicaResources
from serving.errors import LeaseError, SpecError
from serving.spec.tenants import Tenant, key_hash

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
INSTRUCTOR_KEY = "sk-instructor-of-the-class"


def key(name: str) -> str:
    return f"sk-the-key-of-{name}"


def make_lease(name: str, minutes: float = 60, **fields: Any) -> Lease:
    tenant = Tenant(name=name, key_hash=key_hash(key(name)), requests_per_minute=30)
    return Lease(tenant=tenant, ends_at=START + timedelta(minutes=minutes), **fields)


def after(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


@pytest.fixture
def registry() -> LeaseRegistry:
    return LeaseRegistry(
        [make_lease("ada"), make_lease("bob", max_replicas=2, max_gpus=1)], key_hash(INSTRUCTOR_KEY)
    )


class TestAdmission:
    @pytest.mark.parametrize(
        ("name", "replicas", "resources", "minutes", "message"),
        [
            ("ada", 2, ReplicaResources(), 1, "max_replicas must be at most 1, got 2"),
            (
                "ada",
                1,
                ReplicaResources(gpus=1),
                1,
                "GPUs must be at most 0, got 1 replica(s) of 1 GPUs = 1",
            ),
            (
                "bob",
                2,
                ReplicaResources(gpus=1),
                1,
                "GPUs must be at most 1, got 2 replica(s) of 1 GPUs = 2",
            ),
            ("ada", 1, ReplicaResources(), 60, "the lease ended at 10:00:00 UTC"),
        ],
    )
    def test_refusal_names_the_numbers_in_one_sentence(
        self,
        registry: LeaseRegistry,
        name: str,
        replicas: int,
        resources: ReplicaResources,
        minutes: float,
        message: str,
    ) -> None:
        with pytest.raises(LeaseError) as caught:
            registry.admit(name, key(name), replicas, resources, after(minutes))
        assert message in str(caught.value)
        assert str(caught.value).startswith(f"tenant '{name}': ")
        assert str(caught.value).count(". ") == 0

    def test_request_within_the_lease_is_admitted(self, registry: LeaseRegistry) -> None:
        lease = registry.admit("bob", key("bob"), 2, ReplicaResources(gpus=0.5), after(59))
        assert (lease.application, lease.route) == ("class-bob", "/bob")

    @pytest.mark.parametrize("name", ["ada", "nobody"])
    def test_key_of_another_tenant_is_refused_and_not_repeated(
        self, registry: LeaseRegistry, name: str
    ) -> None:
        with pytest.raises(LeaseError, match="has no lease") as caught:
            registry.admit(name, key("bob"), 1, ReplicaResources(), after(1))
        assert key("bob") not in str(caught.value)

    def test_instructor_methods_need_the_instructors_key(self, registry: LeaseRegistry) -> None:
        registry.require_instructor(INSTRUCTOR_KEY)
        with pytest.raises(LeaseError, match="instructor"):
            registry.require_instructor(key("ada"))

    @pytest.mark.parametrize("name", ["Ada", "a.b", "a_b", "ada@home"])
    def test_name_must_be_usable_as_a_route(self, name: str) -> None:
        with pytest.raises(SpecError, match="becomes a route"):
            make_lease(name)

    def test_lease_needs_a_key_hash(self) -> None:
        with pytest.raises(SpecError, match="must have a key_hash"):
            Lease(tenant=Tenant(name="ada"), ends_at=START)


class TestUpdate:
    def test_tenant_is_warned_once_before_the_end(self, registry: LeaseRegistry) -> None:
        replicas = {"class-ada": 1}
        assert registry.update(replicas, after(54)) == []
        ((kind, lease, message),) = registry.update(replicas, after(55.5))[:1]
        assert (kind, lease.name) == ("warn", "ada")
        assert "ends in 270 s" in message
        assert [a for a in registry.update(replicas, after(59)) if a.lease.name == "ada"] == []
        actions = {(kind, lease.name) for kind, lease, _ in registry.update(replicas, after(60))}
        assert ("delete", "ada") in actions

    def test_deletion_is_repeated_until_the_deployment_is_gone(
        self, registry: LeaseRegistry
    ) -> None:
        for minutes in (61, 62):
            ((kind, lease, message),) = registry.update({"class-ada": 1}, after(minutes))
            assert (kind, lease.name, message) == ("delete", "ada", "the lease ended")
        assert registry.update({}, after(63)) == []

    def test_extended_lease_is_warned_again(self, registry: LeaseRegistry) -> None:
        registry.update({"class-ada": 1}, after(56))
        registry.set_lease(make_lease("ada", minutes=120))
        assert registry.update({"class-ada": 1}, after(61)) == []
        assert [action.kind for action in registry.update({"class-ada": 1}, after(116))] == ["warn"]

    def test_replicas_over_the_cap_are_deleted(self, registry: LeaseRegistry) -> None:
        ((kind, lease, message),) = registry.update({"class-ada": 3, "other": 9}, after(1))
        assert (kind, lease.name) == ("delete", "ada")
        assert "3 replicas exceed the cap of 1" in message


def test_usage_is_replicas_times_seconds(registry: LeaseRegistry) -> None:
    registry.admit("bob", key("bob"), 2, ReplicaResources(cpus=4, gpus=0.5), START)
    registry.update({}, after(0))
    registry.update({"class-bob": 1}, after(1))  # 60 s of one
    registry.update({"class-bob": 2}, after(3))  # 120 s of two
    registry.update({}, after(9))
    row = next(row for row in registry.table({}, after(9)) if row["tenant"] == "bob")
    assert (row["replica_s"], row["cpu_s"], row["gpu_s"]) == (300, 1200, 150)
    assert (row["left_s"], row["replicas"]) == (51 * 60, 0)


def test_thirty_tenants_end_at_their_own_times() -> None:
    names = [f"student-{n:02}" for n in range(30)]
    leases = [make_lease(name, minutes=10 + n) for n, name in enumerate(names)]
    registry = LeaseRegistry(leases, key_hash(INSTRUCTOR_KEY))
    replicas = {lease.application: 1 for lease in leases}
    ended: dict[str, int] = {}
    warned: dict[str, int] = {}
    for minute in range(45):
        for kind, lease, _ in registry.update(replicas, after(minute)):
            (warned if kind == "warn" else ended).setdefault(lease.name, minute)
            if kind == "delete":
                del replicas[lease.application]
    assert ended == {name: 10 + n for n, name in enumerate(names)}
    assert warned == {name: 5 + n for n, name in enumerate(names)}
    used = {row["tenant"]: row["replica_s"] for row in registry.table(replicas, after(45))}
    assert used == {name: 60 * (10 + n) for n, name in enumerate(names)}
