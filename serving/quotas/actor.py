"""The book of quotas and usage as a small Ray actor, one a service, that outlives its replicas."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from serving.quotas.accounts import LeaseGrant, QuotaLedger, UsageReport
from serving.spec.tenants import Tenant

if TYPE_CHECKING:
    from ray.actor import ActorHandle

NAMESPACE = "llm-workbench"


class QuotaActor:
    """A book that gates of other processes reach."""

    def __init__(self) -> None:
        self._book = QuotaLedger()

    def join(self, gate: str, tenants: Iterable[Tenant]) -> None:
        """A gate begins, or its tenants have changed."""
        self._book.join(gate, tenants)

    def deal(self, gate: str, reports: dict[str, UsageReport]) -> dict[str, LeaseGrant] | None:
        """Take one gate's reports, and answer each."""
        return self._book.deal(gate, reports)

    def usage(self) -> dict[str, dict[str, int]]:
        """What each tenant has used, by tenant's name."""
        return {name: asdict(usage) for name, usage in self._book.usage().items()}


class ActorLedger:
    """The ledger of a service as a gate uses it; the actor is started by whoever comes first."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._actor: ActorHandle[Any] | None = None

    async def join(self, gate: str, tenants: Iterable[Tenant]) -> None:
        """See :meth:`Book.join`."""
        self._actor = start(self._service)
        await self._actor.join.remote(gate, tuple(tenants))

    async def deal(
        self, gate: str, reports: dict[str, UsageReport]
    ) -> dict[str, LeaseGrant] | None:
        """See :meth:`Book.deal`."""
        if self._actor is None:
            return None
        grants: dict[str, LeaseGrant] | None = await self._actor.deal.remote(gate, reports)
        return grants


def start(service: str) -> ActorHandle[Any]:
    """The service's ledger, started if it does not run; returns without waiting for it."""
    import ray

    actor: ActorHandle[Any] = (
        ray.remote(QuotaActor)
        .options(
            name=_name(service),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
        )
        .remote()
    )
    return actor


def usage(service: str) -> dict[str, dict[str, int]]:
    """What each tenant of the service has used; empty where nobody has called yet."""
    import ray

    found: dict[str, dict[str, int]] = ray.get(start(service).usage.remote())
    return found


def end(service: str) -> None:
    """End the service's ledger, and its record with it."""
    import ray

    try:
        ray.kill(ray.get_actor(_name(service), namespace=NAMESPACE))
    except ValueError:
        return  # there is none


def _name(service: str) -> str:
    return f"ledger:{service}"
