"""The services that sessions opened in this process, by the name in their specification.

A notebook's cell can be executed again: the service that already runs as specified is found here
instead of being deployed a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.errors import ClusterError, EndpointGoneError
from workbench.endpoints.open import open_endpoint

if TYPE_CHECKING:
    from serving.spec.service import EndpointSpec
    from serving.spec.tenants import Tenant
    from workbench.endpoints.remote import Remote


@dataclass(frozen=True)
class Target:
    """The request of a session: a specification, an address and further tenants."""

    spec: EndpointSpec
    address: str
    tenants: tuple[Tenant, ...]

    def open(self, *, replace: bool) -> Remote:
        """Deploy the service, or connect to the endpoint at `address`."""
        return open_endpoint(self.spec, address=self.address, tenants=self.tenants, replace=replace)


@dataclass
class Service:
    """An open service. `owner` is the session that deletes it, `warm` whether it got requests."""

    target: Target
    endpoint: Remote
    owner: object
    warm: bool = False

    def runs(self, target: Target) -> bool:
        """Whether the service still runs, and exactly as `target` asks."""
        # `Endpoint.rescale` changes the endpoint's specification.
        spec = getattr(self.endpoint, "requested_spec", self.target.spec)
        if Target(spec, self.target.address, self.target.tenants) != target:
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
    process. Raises what `open_endpoint` does.
    """
    name = target.spec.name
    running = _services.get(name)
    if running is not None:
        running.owner = owner
        if running.runs(target):
            return running
    _services[name] = Service(target, _replace(running, target, replace), owner)
    return _services[name]


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
    """Delete every service that `owner` is responsible for."""
    for name, service in list(_services.items()):
        if service.owner is owner:
            del _services[name]
            service.endpoint.delete()
