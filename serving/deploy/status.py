"""The state of services, as Ray Serve reports it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from serving.compat.ray import serve_details
from serving.deploy import terms_store
from serving.deploy.terms import Reason, Terms, duration, first_state
from serving.errors import EndpointGoneError
from serving.quotas import actor as ledger

SHORT_S = 60.0
"""Idle times below that are not worth a mention."""
WITHOUT_ENGINE = ("router", "ingress")
"""Deployments whose replicas are small processes of Serve."""
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
    """The state of a service and the replicas of each of its deployments.

    Attributes:
        name: Its name.
        state: Its state.
        deployments: The replicas of each deployment.
        idle_s: Seconds since it was last in use; None if not known.
        left_s: Seconds until it stops by itself, by the reason.
        dollars_per_hour: $ per hour of the replicas that it has now; None without prices.
        frontends: The HTTP front end and the reason, by model, where it is not the default.
    """

    name: str
    state: str
    deployments: dict[str, Replicas]
    idle_s: float | None = field(default=None, compare=False)
    left_s: dict[Reason, float] = field(default_factory=dict, compare=False)
    dollars_per_hour: float | None = None
    frontends: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def lease_left_s(self) -> float | None:
        """Seconds until the lease ends; None without a lease."""
        return self.left_s.get("lease")

    @property
    def stops_in_s(self) -> float | None:
        """Seconds until the service stops by itself if no request arrives; None if it does not."""
        return min(self.left_s.values(), default=None)

    def __str__(self) -> str:
        parts = [f"{n}: {r.running} of {r.target} running" for n, r in self.deployments.items()]
        text = f"{self.name} is {self.state}" + (f" ({'; '.join(parts)})" if parts else "")
        frontends = (f"{model}: {choice}" for model, choice in self.frontends.items())
        return "\n".join([", ".join([text, *self._terms()]), *frontends])

    def _terms(self) -> list[str]:
        texts = []
        if self.idle_s is not None and self.idle_s >= SHORT_S:
            texts.append(f"idle for {duration(self.idle_s)}")
        if self.lease_left_s is not None:
            texts.append(f"{duration(self.lease_left_s)} of its lease left")
        if "idle" in self.left_s:
            texts.append(f"stops in {duration(self.left_s['idle'])} without a request")
        if self.dollars_per_hour is not None:
            texts.append(f"${self.dollars_per_hour:.3g} per hour")
        return texts


def service_status(name: str) -> ServiceStatus:
    """Return the state of application ``name``.

    Raises:
        EndpointGoneError: There is no such application.
    """
    application = details()["applications"].get(name)
    if application is None:
        state = terms_store.load_state(name)
        if state is not None and state.stopped is not None:
            raise EndpointGoneError(f"{state.stopped}. Deploy it again.")
        raise EndpointGoneError(f"{name}: the cluster runs no such service. Deploy it again.")
    return status_of(name, application)


def status_of(name: str, application: dict[str, Any]) -> ServiceStatus:
    """Return the state of an application, from Serve's description and the service's terms."""
    deployments = {key: _replicas(value) for key, value in application["deployments"].items()}
    status = ServiceStatus(name, state_name(application["status"]), deployments)
    terms = terms_store.load_terms(name)
    if terms is None:
        return replace(status, idle_s=ledger.idle_s(name))
    return _under_terms(status, terms)


def _under_terms(status: ServiceStatus, terms: Terms) -> ServiceStatus:
    state = terms_store.load_state(status.name)
    if not terms.limited or state is None or state.terms_id != terms.id:
        # Nothing has applied them yet, so none of the time has passed.
        state, idle_s = first_state(terms, 0.0), ledger.idle_s(status.name)
    else:
        idle_s = state.seen_at - state.used_at
    dollars = hourly_dollars(status, terms.dollars_per_replica_hour)
    return replace(status, idle_s=idle_s, left_s=state.left_s(terms), dollars_per_hour=dollars)


def hourly_dollars(status: ServiceStatus, per_replica_hour: Mapping[str, float]) -> float | None:
    """Return $ per hour of the replicas in any state; None if none of them has a price."""
    if not per_replica_hour:
        return None
    return sum(
        per_replica_hour.get(name, 0.0) * (held.running + held.starting + held.stopping)
        for name, held in status.deployments.items()
    )


def engine_replicas(status: ServiceStatus) -> int:
    """Return the running replicas without those of Serve's router and of the ingress."""
    return sum(r.running for name, r in status.deployments.items() if name not in WITHOUT_ENGINE)


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
