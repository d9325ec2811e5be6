"""A class on one cluster: who has a place, what each may hold, until when. The clock is given.

Only hashes of keys are kept. A place is a tenant's own application and route, with a cap on
replicas and GPUs and a lease; when the lease ends, its deployment goes.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import AwareDatetime, Field, field_validator

from serving.errors import LeaseError
from serving.spec.base import Strict
from serving.spec.tenants import Tenant, key_hash

Action = Literal["warn", "delete"]


class Lease(Strict):
    """One tenant's place: its key and quota, its caps, its lease."""

    tenant: Tenant = Field(description="Who, with the hash of the key, and the quota.")
    max_replicas: int = Field(1, ge=1, description="Most replicas at once.")
    max_gpus: float = Field(0, ge=0, description="Most GPUs at once, of all replicas together.")
    ends_at: AwareDatetime = Field(description="When the lease ends; the deployment goes then.")
    warn_s: float = Field(300, ge=0, description="Seconds before the end that a warning comes.")

    @field_validator("tenant")
    @classmethod
    def _has_a_plain_name_and_a_key(cls, tenant: Tenant) -> Tenant:
        if not tenant.name.replace("-", "").isalnum() or not tenant.name.islower():
            raise ValueError(
                f"tenant {tenant.name!r} names a route: use lowercase letters, digits and hyphens"
            )
        if tenant.key_hash is None:
            raise ValueError(f"tenant {tenant.name!r} has no key_hash; key_hash(key) makes it")
        return tenant

    @property
    def name(self) -> str:
        """The tenant's name."""
        return self.tenant.name

    @property
    def application(self) -> str:
        """The only application this tenant may deploy."""
        return f"class-{self.name}"[:63]

    @property
    def route(self) -> str:
        """Where it answers."""
        return f"/{self.name}"

    def left_s(self, now: datetime) -> float:
        """Seconds until the lease ends; negative after that."""
        return (self.ends_at - now).total_seconds()


@dataclass(frozen=True)
class Held:
    """What an application holds now."""

    replicas: int
    gpus: float = 0.0


@dataclass
class LeaseUsage:
    """What a tenant has used so far, in seconds of replicas, CPUs and GPUs, and was told."""

    replica_s: float = 0.0
    gpu_s: float = 0.0
    cpu_s: float = 0.0
    warned: bool = False
    why_deleted: str | None = None
    told: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ReplicaResources:
    """What a replica takes, told when it is asked for."""

    cpus: float = 1.0
    gpus: float = 0.0


class LeaseRegistry:
    """Every place of a class and its use so far. A refusal is a LeaseError of one sentence."""

    def __init__(self, places: Sequence[Lease], leader_hash: str) -> None:
        self.places: dict[str, Lease] = {}
        self.leader_hash = leader_hash
        self.use: dict[str, LeaseUsage] = {}
        self.sizes: dict[str, ReplicaResources] = {}
        self._last: datetime | None = None
        for place in places:
            self.put(place)

    def put(self, place: Lease) -> None:
        """Add a place, or change one (a longer lease, another cap); its use so far stays."""
        self.places[place.name] = place
        use = self.use.setdefault(place.name, LeaseUsage())
        use.warned = False

    def lead(self, key: str) -> None:
        """Refuse whoever is not the instructor."""
        if not hmac.compare_digest(key_hash(key), self.leader_hash):
            raise LeaseError("Only the instructor's key may do this.")

    def find(self, name: str, key: str) -> Lease:
        """A tenant's place, for its own key alone."""
        place = self.places.get(name)
        known = "" if place is None else place.tenant.key_hash or ""
        if not hmac.compare_digest(key_hash(key), known) or place is None:
            raise LeaseError(f"tenant {name!r} has no place in this class with that key.")
        return place

    def admit(
        self, name: str, key: str, replicas: int, size: ReplicaResources, now: datetime
    ) -> Lease:
        """The place, if its lease runs and its caps allow so many replicas of that size."""
        place = self.find(name, key)
        if place.left_s(now) <= 0:
            raise LeaseError(
                f"tenant {name!r}: the lease ran out at {place.ends_at.astimezone(UTC):%H:%M:%S} "
                "UTC; ask the instructor for more time."
            )
        if replicas > place.max_replicas:
            raise LeaseError(
                f"tenant {name!r}: max_replicas = {replicas} is over the cap of "
                f"{place.max_replicas}; lower it."
            )
        if (gpus := replicas * size.gpus) > place.max_gpus:
            raise LeaseError(
                f"tenant {name!r}: {replicas} replicas of {size.gpus:g} GPUs are {gpus:g}, over "
                f"the cap of {place.max_gpus:g}; lower them."
            )
        self.sizes[name] = size
        self.use[name].why_deleted = None
        return place

    def tick(self, held: Mapping[str, int], now: datetime) -> list[tuple[Action, Lease, str]]:
        """Count what is held, by application, since the last call; say what has to be done."""
        since = 0.0 if self._last is None else max(0.0, (now - self._last).total_seconds())
        self._last = now
        actions: list[tuple[Action, Lease, str]] = []
        for place in self.places.values():
            replicas = held.get(place.application, 0)
            use, size = self.use[place.name], self.sizes.get(place.name, ReplicaResources())
            use.replica_s += replicas * since
            use.gpu_s += replicas * size.gpus * since
            use.cpu_s += replicas * size.cpus * since
            if due := self._due(place, replicas, use, now):
                actions.append(due)
                if use.told[-1:] != [due[2]]:
                    use.told.append(due[2])
        return actions

    def _due(
        self, place: Lease, replicas: int, use: LeaseUsage, now: datetime
    ) -> tuple[Action, Lease, str] | None:
        left = place.left_s(now)
        if replicas and left <= 0:
            use.why_deleted = "the lease ran out"
            return "delete", place, use.why_deleted
        if replicas > place.max_replicas:
            use.why_deleted = f"{replicas} replicas are over the cap of {place.max_replicas}"
            return "delete", place, use.why_deleted
        if 0 < left <= place.warn_s and not use.warned:
            use.warned = True
            return "warn", place, f"the lease ends in {left:.0f} s; the deployment goes then"
        return None

    def rows(self, held: Mapping[str, int], now: datetime) -> list[dict[str, Any]]:
        """One row a tenant: what it may, holds and has used."""
        return [
            {
                "tenant": place.name,
                "application": place.application,
                "replicas": held.get(place.application, 0),
                "max_replicas": place.max_replicas,
                "max_gpus": place.max_gpus,
                "replica_s": round(self.use[place.name].replica_s, 1),
                "cpu_s": round(self.use[place.name].cpu_s, 1),
                "gpu_s": round(self.use[place.name].gpu_s, 1),
                "left_s": round(place.left_s(now), 1),
                "warned": self.use[place.name].warned,
                "deleted": self.use[place.name].why_deleted,
            }
            for place in self.places.values()
        ]
