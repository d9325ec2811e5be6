"""How services stand, by Serve's own account."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from serving.errors import EndpointGoneError

STATES = ("running", "starting", "stopping")


@dataclass(frozen=True)
class Replicas:
    """One deployment's replicas: how many there should be, and how many are in each state."""

    state: str
    target: int
    running: int
    starting: int
    stopping: int

    def counts(self) -> dict[str, int]:
        """The numbers alone."""
        return {name: getattr(self, name) for name in ("target", *STATES)}


@dataclass(frozen=True)
class ServiceStatus:
    """A service by Serve's own account: its state and each deployment's replicas."""

    name: str
    state: str
    deployments: dict[str, Replicas]

    def __str__(self) -> str:
        parts = [f"{n}: {r.running} of {r.target} running" for n, r in self.deployments.items()]
        return f"{self.name} is {self.state}" + (f" ({'; '.join(parts)})" if parts else "")


def of(name: str) -> ServiceStatus:
    """The state of application ``name``.

    Raises:
        EndpointGoneError: there is no such application.
    """
    found = details()["applications"].get(name)
    if found is None:
        raise EndpointGoneError(f"{name}: the cluster runs no such service. Deploy it again.")
    deployments = {key: _replicas(value) for key, value in found["deployments"].items()}
    return ServiceStatus(name, word(found["status"]), deployments)


def _replicas(deployment: dict[str, Any]) -> Replicas:
    states = Counter(word(replica["state"]) for replica in deployment["replicas"])
    counts = {state: states[state] for state in STATES}
    target = int(deployment["target_num_replicas"])
    return Replicas(word(deployment["status"]), target, **counts)


def word(state: Any) -> str:
    """Serve's states are enumerations in one version and strings in another."""
    return str(getattr(state, "value", state)).lower()


def details(timeout_s: float | None = None) -> dict[str, Any]:
    """Serve's own account of every application: targets, replica states, configuration.

    Raises:
        GetTimeoutError: Ray's, where the controller does not answer in ``timeout_s``.
    """
    import ray
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return {"applications": {}}
    found: dict[str, Any] = ray.get(
        client._controller.get_serve_instance_details.remote(), timeout=timeout_s
    )
    return found


def replicas_by_node() -> Counter[str]:
    """How many replicas each node runs, by Ray's node id; Serve's own small routers left out."""
    return Counter(
        str(replica["node_id"])
        for app in details()["applications"].values()
        for name, deployment in app["deployments"].items()
        if name != "router"
        for replica in deployment["replicas"]
        if replica.get("node_id")
    )
