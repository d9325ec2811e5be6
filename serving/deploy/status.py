"""The state of services, as Ray Serve reports it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from serving.compat.ray import serve_details
from serving.errors import EndpointGoneError

REPLICA_STATES = ("running", "starting", "stopping")


@dataclass(frozen=True)
class Replicas:
    """The replicas of one deployment: the target, and the number in each state."""

    state: str
    target: int
    running: int
    starting: int
    stopping: int

    def counts(self) -> dict[str, int]:
        """Return the numbers by name."""
        return {name: getattr(self, name) for name in ("target", *REPLICA_STATES)}


@dataclass(frozen=True)
class ServiceStatus:
    """The state of a service and the replicas of each of its deployments."""

    name: str
    state: str
    deployments: dict[str, Replicas]

    def __str__(self) -> str:
        parts = [f"{n}: {r.running} of {r.target} running" for n, r in self.deployments.items()]
        return f"{self.name} is {self.state}" + (f" ({'; '.join(parts)})" if parts else "")


def service_status(name: str) -> ServiceStatus:
    """Return the state of application ``name``.

    Raises:
        EndpointGoneError: There is no such application.
    """
    application = details()["applications"].get(name)
    if application is None:
        raise EndpointGoneError(f"{name}: the cluster runs no such service. Deploy it again.")
    deployments = {key: _replicas(value) for key, value in application["deployments"].items()}
    return ServiceStatus(name, state_name(application["status"]), deployments)


def _replicas(deployment: dict[str, Any]) -> Replicas:
    states = Counter(state_name(replica["state"]) for replica in deployment["replicas"])
    counts = {state: states[state] for state in REPLICA_STATES}
    target = int(deployment["target_num_replicas"])
    return Replicas(state_name(deployment["status"]), target, **counts)


def state_name(state: Any) -> str:
    """Return the lowercase name of a state of Serve, an enumeration or a string by version."""
    return str(getattr(state, "value", state)).lower()


def details(timeout_s: float | None = None) -> dict[str, Any]:
    """Return Serve's description of every application: targets, replica states, configuration.

    Raises:
        ray.exceptions.GetTimeoutError: The controller does not answer within ``timeout_s``.
    """
    return serve_details(timeout_s) or {"applications": {}}


def replicas_by_node() -> Counter[str]:
    """Return the number of replicas by Ray's node id, without Serve's own small routers."""
    return Counter(
        str(replica["node_id"])
        for application in details()["applications"].values()
        for name, deployment in application["deployments"].items()
        if name != "router"
        for replica in deployment["replicas"]
        if replica.get("node_id")
    )
