"""A class on one cluster, from both sides: the instructor's, and a student's.

    room = open_class([Place(...), ...])          # the instructor, once
    room.table(prices); room.stop("ada"); room.close()

    seat = join_class("ada", key)                 # a student
    with seat.deploy(ModelSpec()) as endpoint: ...

The leases are kept by an actor on the cluster (`serving.classroom.manager`), which outlives both
notebooks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from serving.classroom.leases import Lease
from serving.classroom.manager import NAME, NAMESPACE, LeaseManager
from serving.cluster import connection
from serving.errors import LeaseError
from serving.spec.model import ModelSpec
from serving.spec.service import ServiceSpec
from serving.spec.tenants import key_hash, new_key
from workbench.errors import SettingError

if TYPE_CHECKING:
    import pandas as pd

    from workbench.cost.prices import Prices
    from workbench.endpoints.deployed import Endpoint

CALL_S = 60.0
WATCH_S = 5.0


def open_class(
    places: Sequence[Lease],
    *,
    leader_key: str | None = None,
    address: str | None = None,
    simulated: Callable[[], Any] | None = None,
) -> Classroom:
    """Open a class with these places, or lead the one that is open, with the key it was opened by.

    `simulated` makes what stands in for Ray Serve, where a class is to be tried without engines.
    Raises SettingError for two places of one name, LeaseError for a wrong key.
    """
    import ray

    names = [place.name for place in places]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SettingError(f"places: two are for {', '.join(sorted(twice))}; rename one")
    key = leader_key or new_key()
    hashed = key_hash(key)
    _connect(address)
    options: dict[str, Any] = {"name": NAME, "namespace": NAMESPACE, "lifetime": "detached"}
    options |= {"num_cpus": 0, "max_restarts": -1, "get_if_exists": True, "max_concurrency": 100}
    told: list[Any] = [[place.model_dump(mode="json") for place in places], hashed]
    warden = ray.remote(LeaseManager).options(**options).remote(*told, *filter(None, [simulated]))
    room = Classroom(warden, SecretStr(key))
    room._call("table")
    return room


def join_class(
    name: str,
    key: str,
    *,
    address: str | None = None,
    say: Callable[[str], None] = print,
) -> Seat:
    """A student's seat in the class that is open on the cluster; `say` gets what the class tells.

    Raises LeaseError where there is no class, or no place for this name with this key.
    """
    _connect(address)
    return Seat(_warden(), name, SecretStr(key), say)


def _connect(address: str | None) -> None:
    if connection.current() is None:
        connection.connect(address=address)


def _warden() -> Any:
    import ray

    try:
        return ray.get_actor(NAME, namespace=NAMESPACE)
    except ValueError:
        raise LeaseError("No class is open on this cluster; ask the instructor.") from None


def _get(answer: Any) -> Any:
    """The answer, or what was refused, without Ray's stack around it."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(answer, timeout=CALL_S)
    except RayTaskError as problem:
        raise (problem.cause if isinstance(problem.cause, LeaseError) else problem) from None


class Classroom:
    """The instructor's side."""

    def __init__(self, warden: Any, leader_key: SecretStr) -> None:
        self._warden, self.leader_key = warden, leader_key

    def _call(self, method: str, *arguments: Any) -> Any:
        leader = self.leader_key.get_secret_value()
        return _get(getattr(self._warden, method).remote(leader, *arguments))

    def table(self, prices: Prices | None = None) -> pd.DataFrame:
        """A row a tenant: what it may, holds and has used; with `prices`, what that costs in $."""
        import pandas as pd

        frame = pd.DataFrame(self._call("table")).set_index("tenant")
        if prices is not None:
            cpu, gpu = prices.cpu_hour or 0.0, prices.gpu_hour or 0.0
            frame["cost"] = ((frame.cpu_s * cpu + frame.gpu_s * gpu) / 3600).round(4)
        return frame

    def stop(self, tenant: str) -> None:
        """Delete a tenant's deployment now."""
        self._known(tenant)
        self._call("stop", tenant)

    def put(self, place: Lease) -> None:
        """Add a place, or change one."""
        self._call("put", place.model_dump(mode="json"))

    def extend(self, place: Lease, minutes: float) -> Lease:
        """Let a lease run longer (or shorter)."""
        longer = place.model_copy(update={"ends_at": place.ends_at + timedelta(minutes=minutes)})
        self.put(longer)
        return longer

    def close(self) -> None:
        """Delete every tenant's deployment, and end the class."""
        import ray

        self._call("close")
        ray.kill(self._warden)

    def _known(self, tenant: str) -> None:
        names = [row["tenant"] for row in self._call("table")]
        if tenant not in names:
            raise SettingError(f"tenant is {tenant!r}, but the class has {', '.join(names)}")


class Seat:
    """A student's side: one application, at a route of its own, within caps and a lease."""

    def __init__(self, warden: Any, name: str, key: SecretStr, say: Callable[[str], None]) -> None:
        self._warden, self.name, self._key, self._say = warden, name, key, say
        self._heard = 0
        self.listen()

    def listen(self) -> float:
        """Say what the class has told since; seconds left of the lease."""
        found = _get(self._warden.place.remote(self.name, self._key.get_secret_value()))
        for line in found["told"][self._heard :]:
            self._say(f"{self.name}: {line}")
        self._heard = len(found["told"])
        self.place = Lease(**found["place"])
        return float(found["left_s"])

    def deploy(self, model: ModelSpec, **service: Any) -> Endpoint:
        """Deploy `model` in this seat; `service` are further fields of `ServiceSpec`.

        Raises LeaseError for a lease that ran out or more than the cap, before anything starts.
        """
        from workbench.endpoints.deployed import deploy

        own = {"name": self.place.application, "route_prefix": self.place.route}
        spec = ServiceSpec(model=model, **{"port": 0} | service | own)
        self._admit(model)
        endpoint = deploy(spec, tenants=[self.place.tenant])
        endpoint.api_key = self._key
        threading.Thread(target=self._watch, args=(endpoint,), daemon=True).start()
        return endpoint

    def _admit(self, model: ModelSpec) -> None:
        bundle: Mapping[str, float] = model.bundle
        size = {
            "cpus": bundle.get("CPU", 0.0) * model.workers,
            "gpus": bundle.get("GPU", 0.0) * model.workers,
        }
        key, most = self._key.get_secret_value(), model.scaling.max_replicas
        _get(self._warden.admit.remote(self.name, key, most, size))

    def _watch(self, endpoint: Endpoint) -> None:
        """Say the class's warnings while the deployment runs."""
        pause = threading.Event()
        while not pause.wait(WATCH_S):
            try:
                self.listen()
                endpoint.status()
            except Exception:
                return  # the class, the cluster or the deployment is gone
