"""A class on one cluster, for the instructor and for students.

The instructor opens the class once:

    room = wb.classroom.open([wb.classroom.Lease(...), ...])
    room.table(prices)
    room.stop("ada")
    room.close()

A student joins it and deploys within the lease:

    seat = wb.classroom.join("ada", key)
    with seat.deploy(wb.ModelSpec()) as endpoint:
        ...

An actor on the cluster (`serving.classroom.manager`) enforces the leases and outlives every
notebook.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from serving.classroom.leases import Lease
from serving.classroom.manager import ACTOR_NAME, NAMESPACE, LeaseManager
from serving.cluster import connection
from serving.errors import LeaseError
from serving.spec.model import ModelSpec
from serving.spec.service import ServiceSpec
from serving.spec.tenants import TENANT_KEY_VARIABLE, TENANT_VARIABLE, key_hash, new_key
from workbench.errors import SettingError

if TYPE_CHECKING:
    import pandas as pd

    from workbench.cost.prices import Prices
    from workbench.endpoints.deployed import Endpoint

__all__ = ["Classroom", "Lease", "Seat", "join", "key_hash", "new_key", "open"]

CALL_TIMEOUT_S = 60.0
LISTEN_INTERVAL_S = 5.0


def open(
    leases: Sequence[Lease],
    *,
    instructor_key: str | None = None,
    address: str | None = None,
    applications: Callable[[], Any] | None = None,
) -> Classroom:
    """Open a class with these leases, or connect to the class that is open on the cluster.

    Args:
        leases: One lease per student. They are ignored where a class is open already.
        instructor_key: The key of the class; default: a new one. To connect to an open class, give
            the key that it was opened with.
        address: Address of the Ray cluster; default: as for `workbench.deploy`.
        applications: Creates a substitute for Ray Serve, to try a class without engines.

    Raises:
        SettingError: Two leases are for the same tenant.
        LeaseError: A class is open with another key.
    """
    import ray

    names = [lease.name for lease in leases]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise SettingError(
            f"leases must be for different tenants, got two for {', '.join(duplicates)}; rename one"
        )
    key = instructor_key or new_key()
    arguments: list[Any] = [[lease.model_dump(mode="json") for lease in leases], key_hash(key)]
    if applications is not None:
        arguments.append(applications)
    _connect(address)
    actor = ray.remote(LeaseManager).options(
        name=ACTOR_NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        get_if_exists=True,
        max_concurrency=100,
    )
    room = Classroom(actor.remote(*arguments), SecretStr(key))
    room._call("table")  # refuses a wrong key
    return room


def join(
    name: str | None = None,
    key: str | None = None,
    *,
    address: str | None = None,
    notify: Callable[[str], None] = print,
) -> Seat:
    """Join the class that is open on the cluster.

    Args:
        name: The student's name in the class; default: the variable LLM_WORKBENCH_TENANT.
        key: The student's key; default: the variable LLM_WORKBENCH_TENANT_KEY. JupyterHub sets
            both with `deploy/jupyterhub_config.py`.
        address: Address of the Ray cluster; default: as for `workbench.deploy`.
        notify: Receives the messages of the class.

    Raises:
        SettingError: The name or the key is missing.
        LeaseError: No class is open, or it has no lease for this name and key.
    """
    name, key = name or os.environ.get(TENANT_VARIABLE), key or os.environ.get(TENANT_KEY_VARIABLE)
    if not name or not key:
        raise SettingError(
            f"join needs a name and a key: give both, or set {TENANT_VARIABLE} and "
            f"{TENANT_KEY_VARIABLE}"
        )
    _connect(address)
    return Seat(_find_manager(), name, SecretStr(key), notify)


def _connect(address: str | None) -> None:
    if connection.current() is None:
        connection.connect(address=address)


def _find_manager() -> Any:
    import ray

    try:
        return ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
    except ValueError:
        raise LeaseError("No class is open on this cluster; ask the instructor.") from None


def _result(reference: Any) -> Any:
    """Return a call's result, or raise its LeaseError without Ray's traceback."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(reference, timeout=CALL_TIMEOUT_S)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, LeaseError) else error) from None


class Classroom:
    """The instructor's side of a class. `instructor_key` is needed to connect to it again."""

    def __init__(self, manager: Any, instructor_key: SecretStr) -> None:
        self._manager, self.instructor_key = manager, instructor_key

    def _call(self, method: str, *arguments: Any) -> Any:
        key = self.instructor_key.get_secret_value()
        return _result(getattr(self._manager, method).remote(key, *arguments))

    def table(self, prices: Prices | None = None) -> pd.DataFrame:
        """Return one row per tenant: its caps, its replicas and its usage.

        With `prices`, the column `cost` has the cost of the usage in USD.
        """
        import pandas as pd

        frame = pd.DataFrame(self._call("table")).set_index("tenant")
        if prices is not None:
            cpu, gpu = prices.cpu_hour or 0.0, prices.gpu_hour or 0.0
            frame["cost"] = ((frame.cpu_s * cpu + frame.gpu_s * gpu) / 3600).round(4)
        return frame

    def stop(self, tenant: str) -> None:
        """Delete a tenant's deployment now.

        Raises:
            SettingError: The class has no such tenant.
        """
        names = [row["tenant"] for row in self._call("table")]
        if tenant not in names:
            raise SettingError(f"tenant must be one of {', '.join(names)}, got {tenant!r}")
        self._call("stop", tenant)

    def set_lease(self, lease: Lease) -> None:
        """Add a lease or replace one."""
        self._call("set_lease", lease.model_dump(mode="json"))

    def extend(self, lease: Lease, minutes: float) -> Lease:
        """Extend a lease by `minutes`, and return the new lease."""
        extended = lease.model_copy(update={"ends_at": lease.ends_at + timedelta(minutes=minutes)})
        self.set_lease(extended)
        return extended

    def close(self) -> None:
        """Delete every tenant's deployment, and close the class."""
        import ray

        self._call("close")
        ray.kill(self._manager)


class Seat:
    """A student's side of a class: one application at its own route, within a lease."""

    def __init__(
        self, manager: Any, name: str, key: SecretStr, notify: Callable[[str], None]
    ) -> None:
        self._manager, self.name, self._key, self._notify = manager, name, key, notify
        self._messages_seen = 0
        self.listen()

    def listen(self) -> float:
        """Pass on the new messages of the class, and return the seconds left of the lease."""
        state = _result(self._manager.lease.remote(self.name, self._key.get_secret_value()))
        for message in state["messages"][self._messages_seen :]:
            self._notify(f"{self.name}: {message}")
        self._messages_seen = len(state["messages"])
        self.lease = Lease(**state["lease"])
        return float(state["remaining_s"])

    def deploy(self, model: ModelSpec, **service: Any) -> Endpoint:
        """Deploy a model within the lease.

        Args:
            model: The model to serve.
            service: More fields of `ServiceSpec`.

        Raises:
            LeaseError: The lease has ended, or a cap is exceeded; nothing has started then.
        """
        from workbench.endpoints.deployed import deploy

        own = {"name": self.lease.application, "route_prefix": self.lease.route}
        spec = ServiceSpec(model=model, **{"port": 0} | service | own)
        self._admit(model)
        # The lease gives the application of this name to the student, from any process.
        endpoint = deploy(spec, tenants=[self.lease.tenant], replace=True)
        endpoint.api_key = self._key
        threading.Thread(target=self._watch, args=(endpoint,), daemon=True).start()
        return endpoint

    def _admit(self, model: ModelSpec) -> None:
        worker = model.worker_resources
        resources = {
            "cpus": worker.get("CPU", 0.0) * model.workers,
            "gpus": worker.get("GPU", 0.0) * model.workers,
        }
        key, replicas = self._key.get_secret_value(), model.scaling.max_replicas
        _result(self._manager.admit.remote(self.name, key, replicas, resources))

    def _watch(self, endpoint: Endpoint) -> None:
        """Pass on messages while the deployment runs."""
        pause = threading.Event()
        while not pause.wait(LISTEN_INTERVAL_S):
            try:
                self.listen()
                endpoint.status()
            except Exception:
                return  # the class, the cluster or the deployment is gone
