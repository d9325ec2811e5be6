"""A class's rules with a clock of the test's own; the expected sums are done by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from serving.classroom.leases import Lease, LeaseRegistry, ReplicaResources
from serving.errors import LeaseError, SpecError
from serving.spec.tenants import Tenant, key_hash

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
LEADER = "sk-leader-of-the-class"


def key(name: str) -> str:
    return f"sk-the-key-of-{name}"


def place(name: str, minutes: float = 60, **fields: Any) -> Lease:
    tenant = Tenant(name=name, key_hash=key_hash(key(name)), requests_per_minute=30)
    return Lease(tenant=tenant, ends_at=START + timedelta(minutes=minutes), **fields)


def after(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


@pytest.fixture
def register() -> LeaseRegistry:
    return LeaseRegistry([place("ada"), place("bob", max_replicas=2, max_gpus=1)], key_hash(LEADER))


class TestAdmission:
    @pytest.mark.parametrize(
        ("name", "replicas", "size", "minutes", "said"),
        [
            ("ada", 2, ReplicaResources(), 1, "max_replicas = 2 is over the cap of 1"),
            (
                "ada",
                1,
                ReplicaResources(gpus=1),
                1,
                "1 replicas of 1 GPUs are 1, over the cap of 0",
            ),
            (
                "bob",
                2,
                ReplicaResources(gpus=1),
                1,
                "2 replicas of 1 GPUs are 2, over the cap of 1",
            ),
            ("ada", 1, ReplicaResources(), 60, "the lease ran out at 10:00:00 UTC"),
        ],
    )
    def test_is_refused_in_a_sentence_with_the_numbers(
        self,
        register: LeaseRegistry,
        name: str,
        replicas: int,
        size: ReplicaResources,
        minutes: float,
        said: str,
    ) -> None:
        with pytest.raises(LeaseError) as caught:
            register.admit(name, key(name), replicas, size, after(minutes))
        assert said in str(caught.value)
        assert str(caught.value).startswith(f"tenant '{name}': ")
        assert str(caught.value).count(". ") == 0

    def test_within_caps_and_lease_is_granted(self, register: LeaseRegistry) -> None:
        granted = register.admit("bob", key("bob"), 2, ReplicaResources(gpus=0.5), after(59))
        assert (granted.application, granted.route) == ("class-bob", "/bob")

    @pytest.mark.parametrize("name", ["ada", "nobody"])
    def test_another_ones_key_opens_no_place_and_is_not_repeated(
        self, register: LeaseRegistry, name: str
    ) -> None:
        with pytest.raises(LeaseError, match="has no place") as caught:
            register.admit(name, key("bob"), 1, ReplicaResources(), after(1))
        assert key("bob") not in str(caught.value)

    def test_only_the_leader_leads(self, register: LeaseRegistry) -> None:
        register.lead(LEADER)
        with pytest.raises(LeaseError, match="instructor"):
            register.lead(key("ada"))

    @pytest.mark.parametrize("name", ["Ada", "a.b", "a_b", "ada@home"])
    def test_a_name_that_is_no_route_is_refused(self, name: str) -> None:
        with pytest.raises(SpecError, match="names a route"):
            place(name)

    def test_a_place_without_a_key_is_refused(self) -> None:
        with pytest.raises(SpecError, match="no key_hash"):
            Lease(tenant=Tenant(name="ada"), ends_at=START)


class TestTheLease:
    def test_a_warning_comes_once_and_then_the_end(self, register: LeaseRegistry) -> None:
        held = {"class-ada": 1}
        assert register.tick(held, after(54)) == []
        ((kind, who, why),) = register.tick(held, after(55.5))[:1]
        assert (kind, who.name) == ("warn", "ada")
        assert "ends in 270 s" in why
        assert [a for a in register.tick(held, after(59)) if a[1].name == "ada"] == []
        actions = {(kind, who.name) for kind, who, _ in register.tick(held, after(60))}
        assert ("delete", "ada") in actions

    def test_it_is_told_again_until_the_deployment_is_gone(self, register: LeaseRegistry) -> None:
        for minutes in (61, 62):
            ((kind, who, why),) = register.tick({"class-ada": 1}, after(minutes))
            assert (kind, who.name, why) == ("delete", "ada", "the lease ran out")
        assert register.tick({}, after(63)) == []

    def test_a_longer_lease_is_warned_of_anew(self, register: LeaseRegistry) -> None:
        register.tick({"class-ada": 1}, after(56))
        register.put(place("ada", minutes=120))
        assert register.tick({"class-ada": 1}, after(61)) == []
        assert [a[0] for a in register.tick({"class-ada": 1}, after(116))] == ["warn"]

    def test_more_replicas_than_the_cap_are_deleted_however_they_came(
        self, register: LeaseRegistry
    ) -> None:
        ((kind, who, why),) = register.tick({"class-ada": 3, "other": 9}, after(1))
        assert (kind, who.name) == ("delete", "ada")
        assert "3 replicas are over the cap of 1" in why


def test_use_is_replicas_times_seconds_while_they_were_held(register: LeaseRegistry) -> None:
    register.admit("bob", key("bob"), 2, ReplicaResources(cpus=4, gpus=0.5), START)
    register.tick({}, after(0))
    register.tick({"class-bob": 1}, after(1))  # 60 s of one
    register.tick({"class-bob": 2}, after(3))  # 120 s of two
    register.tick({}, after(9))
    row = next(row for row in register.rows({}, after(9)) if row["tenant"] == "bob")
    assert (row["replica_s"], row["cpu_s"], row["gpu_s"]) == (300, 1200, 150)
    assert (row["left_s"], row["replicas"]) == (51 * 60, 0)


def test_thirty_tenants_each_have_their_own_end() -> None:
    names = [f"student-{n:02}" for n in range(30)]
    places = [place(name, minutes=10 + n) for n, name in enumerate(names)]
    register = LeaseRegistry(places, key_hash(LEADER))
    held = {one.application: 1 for one in places}
    ended: dict[str, int] = {}
    warned: dict[str, int] = {}
    for minute in range(45):
        for kind, who, _ in register.tick(held, after(minute)):
            (warned if kind == "warn" else ended).setdefault(who.name, minute)
            if kind == "delete":
                del held[who.application]
    assert ended == {name: 10 + n for n, name in enumerate(names)}
    assert warned == {name: 5 + n for n, name in enumerate(names)}
    used = {row["tenant"]: row["replica_s"] for row in register.rows(held, after(45))}
    assert used == {name: 60 * (10 + n) for n, name in enumerate(names)}
