"""The quota ledger as a small Ray actor, one per service, that outlives the service's replicas."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from serving.quotas.accounts import LeaseGrant, QuotaLedger, Usage, UsageReport
from serving.spec.tenants import Tenant

if TYPE_CHECKING:
    from ray.actor import ActorHandle

NAMESPACE = "llm-workbench"
IDLE_TIMEOUT_S = 5.0


class ActorLedger:
    """The ledger of a service, as its gates call it; the first gate starts the actor."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._actor: ActorHandle[Any] | None = None

    async def join(self, gate: str, tenants: Iterable[Tenant]) -> None:
        """Register a gate; see :meth:`QuotaLedger.join`."""
        self._actor = start_ledger(self._service)
        await self._actor.join.remote(gate, tuple(tenants))

    async def renew(
        self, gate: str, reports: dict[str, UsageReport]
    ) -> dict[str, LeaseGrant] | None:
        """Report and lease; see :meth:`QuotaLedger.renew`."""
        if self._actor is None:
            return None
        grants: dict[str, LeaseGrant] | None = await self._actor.renew.remote(gate, reports)
        return grants


def start_ledger(service: str) -> ActorHandle[Any]:
    """Start the service's ledger unless it runs; return its handle without waiting for it."""
    import ray

    actor: ActorHandle[Any] = (
        ray.remote(QuotaLedger)
        .options(
            name=_actor_name(service),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
        )
        .remote()
    )
    return actor


def usage_by_tenant(service: str) -> dict[str, dict[str, int]]:
    """Return the counts of :class:`Usage` by tenant's name; empty before the first request."""
    import ray

    usage: dict[str, Usage] = ray.get(start_ledger(service).usage.remote())
    return {name: asdict(counts) for name, counts in usage.items()}


def idle_s(service: str) -> float | None:
    """Return the seconds since a request was in progress; None if no ledger answers."""
    import ray

    try:
        ledger = ray.get_actor(_actor_name(service), namespace=NAMESPACE)
        return float(ray.get(ledger.idle_s.remote(), timeout=IDLE_TIMEOUT_S))
    except (ValueError, ray.exceptions.RayError):
        return None


def end_ledger(service: str) -> None:
    """End the service's ledger, if it runs; its record is lost."""
    import ray

    try:
        ray.kill(ray.get_actor(_actor_name(service), namespace=NAMESPACE))
    except ValueError:
        return  # it does not run


def _actor_name(service: str) -> str:
    return f"ledger:{service}"
