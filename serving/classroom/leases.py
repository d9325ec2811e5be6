"""Leases of a class on one cluster: the resources of each tenant, and their end.

A lease gives a tenant one application at its own route, with a cap on replicas and GPUs and an
end time, after which the deployment is deleted. Only hashes of keys are stored. The caller passes
the current time.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from pydantic import AwareDatetime, Field, field_validator

from serving.errors import LeaseError
from serving.spec.base import Strict
from serving.spec.tenants import Tenant, key_hash


class Lease(Strict):
    """One tenant's share of a class: its key and quota, its caps and its end."""

    tenant: Tenant = Field(description="The tenant, with the hash of its key and its quota.")
    max_replicas: int = Field(1, ge=1, description="Maximum number of replicas at once.")
    max_gpus: float = Field(
        0, ge=0, description="Maximum number of GPUs at once, over all replicas."
    )
    ends_at: AwareDatetime = Field(
        description="Time at which the deployment is deleted, with its time zone."
    )
    warn_s: float = Field(
        300, ge=0, description="Seconds before the end at which the tenant is warned."
    )

    @field_validator("tenant")
    @classmethod
    def _check_tenant(cls, tenant: Tenant) -> Tenant:
        if not tenant.name.replace("-", "").isalnum() or not tenant.name.islower():
            raise ValueError(
                "must have a name of lowercase letters, digits and hyphens, which becomes a route"
            )
        if tenant.key_hash is None:
            raise ValueError("must have a key_hash; key_hash(key) returns it")
        return tenant

    @property
    def name(self) -> str:
        """The tenant's name."""
        return self.tenant.name

    @property
    def application(self) -> str:
        """Name of the only application that the tenant may deploy."""
        return f"class-{self.name}"[:63]

    @property
    def route(self) -> str:
        """URL path of the tenant's endpoint."""
        return f"/{self.name}"

    def remaining_s(self, now: datetime) -> float:
        """Return the seconds until the lease ends, negative after the end."""
        return (self.ends_at - now).total_seconds()


@dataclass
class LeaseUsage:
    """The usage of a tenant in replica-, GPU- and CPU-seconds, and the messages sent to it."""

    replica_s: float = 0.0
    gpu_s: float = 0.0
    cpu_s: float = 0.0
    warned: bool = False
    why_deleted: str | None = None
    messages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ReplicaResources:
    """CPUs and GPUs of one replica, as requested at admission."""

    cpus: float = 1.0
    gpus: float = 0.0


class LeaseAction(NamedTuple):
    """An action on a lease: send a warning, or delete the deployment."""

    kind: Literal["warn", "delete"]
    lease: Lease
    message: str


class LeaseRegistry:
    """The leases of a class and their usage."""

    def __init__(self, leases: Sequence[Lease], instructor_hash: str) -> None:
        self.leases: dict[str, Lease] = {}
        self.instructor_hash = instructor_hash
        self.usage: dict[str, LeaseUsage] = {}
        self.resources: dict[str, ReplicaResources] = {}
        self._updated_at: datetime | None = None
        for lease in leases:
            self.set_lease(lease)

    def set_lease(self, lease: Lease) -> None:
        """Add a lease or replace one, for instance with a later end. The usage remains."""
        self.leases[lease.name] = lease
        usage = self.usage.setdefault(lease.name, LeaseUsage())
        usage.warned = False

    def require_instructor(self, key: str) -> None:
        """Check the instructor's key.

        Raises:
            LeaseError: The key is not the instructor's.
        """
        if not hmac.compare_digest(key_hash(key), self.instructor_hash):
            raise LeaseError("Only the instructor's key allows this; use the key of the class.")

    def find(self, name: str, key: str) -> Lease:
        """Return a tenant's lease.

        Raises:
            LeaseError: The class has no such tenant, or the key is not the tenant's.
        """
        lease = self.leases.get(name)
        known = "" if lease is None else lease.tenant.key_hash or ""
        if not hmac.compare_digest(key_hash(key), known) or lease is None:
            raise LeaseError(
                f"tenant {name!r} has no lease in this class with that key; check both."
            )
        return lease

    def admit(
        self, name: str, key: str, replicas: int, resources: ReplicaResources, now: datetime
    ) -> Lease:
        """Check that a tenant may deploy this number of replicas, and return its lease.

        Raises:
            LeaseError: The key is wrong, the lease has ended, or a cap is exceeded.
        """
        lease = self.find(name, key)
        if lease.remaining_s(now) <= 0:
            raise LeaseError(
                f"tenant {name!r}: the lease ended at {lease.ends_at.astimezone(UTC):%H:%M:%S} "
                "UTC; ask the instructor for more time."
            )
        if replicas > lease.max_replicas:
            raise LeaseError(
                f"tenant {name!r}: max_replicas must be at most {lease.max_replicas}, got "
                f"{replicas}; lower it."
            )
        if (gpus := replicas * resources.gpus) > lease.max_gpus:
            raise LeaseError(
                f"tenant {name!r}: GPUs must be at most {lease.max_gpus:g}, got {replicas} "
                f"replica(s) of {resources.gpus:g} GPUs = {gpus:g}; use fewer replicas or GPUs."
            )
        self.resources[name] = resources
        self.usage[name].why_deleted = None
        return lease

    def update(self, replicas: Mapping[str, int], now: datetime) -> list[LeaseAction]:
        """Add the usage since the last call, and return the actions to take.

        Args:
            replicas: Starting and running replicas, by application.
            now: The current time.
        """
        since = self._updated_at or now
        elapsed_s = max(0.0, (now - since).total_seconds())
        self._updated_at = now
        actions = []
        for lease in self.leases.values():
            count, usage = replicas.get(lease.application, 0), self.usage[lease.name]
            resources = self.resources.get(lease.name, ReplicaResources())
            usage.replica_s += count * elapsed_s
            usage.gpu_s += count * resources.gpus * elapsed_s
            usage.cpu_s += count * resources.cpus * elapsed_s
            if action := _due_action(lease, count, usage, now):
                actions.append(action)
                if usage.messages[-1:] != [action.message]:
                    usage.messages.append(action.message)
        return actions

    def table(self, replicas: Mapping[str, int], now: datetime) -> list[dict[str, Any]]:
        """Return one row per tenant: its caps, its replicas and its usage."""
        return [self._row(lease, replicas, now) for lease in self.leases.values()]

    def _row(self, lease: Lease, replicas: Mapping[str, int], now: datetime) -> dict[str, Any]:
        usage = self.usage[lease.name]
        return {
            "tenant": lease.name,
            "application": lease.application,
            "replicas": replicas.get(lease.application, 0),
            "max_replicas": lease.max_replicas,
            "max_gpus": lease.max_gpus,
            "replica_s": round(usage.replica_s, 1),
            "cpu_s": round(usage.cpu_s, 1),
            "gpu_s": round(usage.gpu_s, 1),
            "left_s": round(lease.remaining_s(now), 1),
            "warned": usage.warned,
            "deleted": usage.why_deleted,
        }


def _due_action(
    lease: Lease, replicas: int, usage: LeaseUsage, now: datetime
) -> LeaseAction | None:
    remaining_s = lease.remaining_s(now)
    if replicas and remaining_s <= 0:
        usage.why_deleted = "the lease ended"
    elif replicas > lease.max_replicas:
        usage.why_deleted = f"{replicas} replicas exceed the cap of {lease.max_replicas}"
    elif 0 < remaining_s <= lease.warn_s and not usage.warned:
        usage.warned = True
        message = f"the lease ends in {remaining_s:.0f} s; the deployment is deleted then"
        return LeaseAction("warn", lease, message)
    else:
        return None
    return LeaseAction("delete", lease, usage.why_deleted)
