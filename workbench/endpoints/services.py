"""The services that sessions opened in this process, by the name in their specification.

A notebook's cell can be executed again: the service that already runs as specified is found here
instead of being deployed a second time. In a kernel that runs one notebook after another
(`KEEP_VARIABLE`), a service is found by the next notebook too.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.errors import ClusterError, EndpointGoneError
from serving.spec.pipeline import PipelineSpec
from serving.spec.service import ServiceSpec
from workbench.endpoints.open import open_endpoint

if TYPE_CHECKING:
    from serving.spec.service import EndpointSpec
    from serving.spec.tenants import Tenant
    from workbench.endpoints.remote import Remote
    from workbench.endpoints.terms import ReplicaPrices


KEEP_VARIABLE = "WORKBENCH_KEEP_SERVICES"
"""The environment variable that lets services stay for the next notebook in the same kernel."""


@dataclass(frozen=True)
class Target:
    """The request of a session: a specification, an address, further tenants and the terms."""

    spec: EndpointSpec
    address: str
    tenants: tuple[Tenant, ...]
    lease_minutes: float | None = None
    idle_minutes: float | None = None
    prices: ReplicaPrices | None = None

    def open(self, *, replace: bool) -> Remote:
        """Deploy the service, or connect to the endpoint at `address`."""
        return open_endpoint(
            self.spec,
            address=self.address,
            tenants=self.tenants,
            replace=replace,
            lease_minutes=self.lease_minutes,
            idle_minutes=self.idle_minutes,
            prices=self.prices,
        )


@dataclass
class Service:
    """An open service.

    `owner` is the session that deletes it, None if that session left it for the next one. `warm` is
    whether it got requests.
    """

    target: Target
    endpoint: Remote
    owner: object | None
    warm: bool = False

    def runs(self, target: Target) -> bool:
        """Whether the service still runs, and exactly as `target` asks."""
        # `Endpoint.rescale` changes the endpoint's specification.
        spec = getattr(self.endpoint, "requested_spec", self.target.spec)
        if dataclasses.replace(self.target, spec=spec) != target:
            return False
        try:
            self.endpoint.status()
        except EndpointGoneError:
            return False
        return self.endpoint.deployment is not None or self.endpoint.answers()


_services: dict[str, Service] = {}


def open_service(target: Target, owner: object, *, replace: bool = False) -> Service:
    """Return the service that runs as `target` asks; `owner` is responsible for it from now on.

    A service of the same name that runs otherwise is replaced; with `replace`, also one of another
    process. Services that a session left (`KEEP_VARIABLE`) make room for one that is deployed.
    Raises what `open_endpoint` does.
    """
    name = target.spec.name
    running = _services.get(name)
    if running is not None:
        was_left, running.owner = running.owner is None, owner
        if running.runs(target):
            if was_left:
                _begin_without_cached_prefixes(running.endpoint)
            if target.lease_minutes is not None:
                running.endpoint = target.open(replace=replace)  # Renew the lease.
            return running
    delete_left_services()
    _services[name] = Service(target, _replace(running, target, replace), owner)
    return _services[name]


def _begin_without_cached_prefixes(endpoint: Remote) -> None:
    """Keep the next load from finding prompts of an earlier one in vLLM's prefix cache."""
    endpoint.extra_body["cache_salt"] = secrets.token_hex(8)


def _replace(running: Service | None, target: Target, replace: bool) -> Remote:
    try:
        return target.open(replace=replace)
    except ClusterError:
        if running is None:
            raise
        # The cluster cannot change to this specification while it runs, for example its port.
        running.endpoint.delete()
        return target.open(replace=replace)


def close_services(owner: object) -> None:
    """Delete every service that `owner` is responsible for, or leave it for the next notebook.

    Only a service with a fixed number of replicas is left, so that it is found as it was specified.
    """
    delete_left_services()
    keeps = bool(os.environ.get(KEEP_VARIABLE))
    for name, service in list(_services.items()):
        if service.owner is owner:
            if keeps and _can_stay(service):
                service.owner = None
            else:
                del _services[name]
                service.endpoint.delete()


def delete_left_services() -> None:
    """Delete the services that sessions left and that no other session uses."""
    for name, service in list(_services.items()):
        if service.owner is None:
            del _services[name]
            service.endpoint.delete()


def _can_stay(service: Service) -> bool:
    spec = service.target.spec
    scalings = (model.scaling for model in spec.models)
    fixed = all(scaling.min_replicas == scaling.max_replicas for scaling in scalings)
    return fixed and isinstance(spec, ServiceSpec | PipelineSpec)
