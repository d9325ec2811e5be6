"""Deploy, look at and delete a service on the connected cluster."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serving import app as application
from serving import cluster as clusters
from serving import fit
from serving.cluster import SERVE_FLAGS, SERVE_TUNING, Cluster
from serving.errors import LAST_WORDS, ClusterError, DeployError, EndpointGoneError
from serving.spec import ServiceSpec

Progress = Callable[[str], None]
POLL_S = 0.25
STATES = ("running", "starting", "stopping")


def deploy(
    spec: ServiceSpec, cluster: Cluster, key_hashes: tuple[str, ...], progress: Progress
) -> int:
    """Bring the service up as specified and return the endpoint's port.

    The same spec and keys again return at once; changed limits, keys and scaling reach running
    replicas; anything else replaces them.

    Raises:
        ResourcesError: a replica can never be placed.
        ClusterError: the cluster's Serve runs without what the spec needs.
        DeployError: a replica did not start; the message has the engine's last words.
    """
    fit.check_fit(spec)
    port = _start_serve(spec, cluster, progress)
    if _unchanged(spec, key_hashes):
        progress(f"{spec.name}: already running as specified")
        return port
    from ray import serve

    target = serve.RunTarget(
        target=application.application(spec, key_hashes),
        name=spec.name,
        route_prefix=spec.route_prefix,
    )
    serve.run_many([target], wait_for_applications_running=False)
    _wait(spec, progress)
    return port


def delete(name: str, cluster: Cluster) -> None:
    """Delete one application; a cluster of ours ends with its last one. Unknown names are done."""
    from ray import serve

    others = [other for other in details()["applications"] if other != name]
    if cluster.ours and not others:
        clusters.disconnect()
    elif name in details()["applications"]:
        serve.delete(name)


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
        return f"{self.name} is {self.state} ({'; '.join(parts)})"


def status(name: str) -> ServiceStatus:
    """The state of application ``name``.

    Raises:
        EndpointGoneError: there is no such application.
    """
    found = details()["applications"].get(name)
    if found is None:
        raise EndpointGoneError(f"{name}: the cluster runs no such service. Deploy it again.")
    deployments = {key: _replicas(value) for key, value in found["deployments"].items()}
    return ServiceStatus(name, _word(found["status"]), deployments)


def _replicas(deployment: dict[str, Any]) -> Replicas:
    states = Counter(_word(replica["state"]) for replica in deployment["replicas"])
    counts = {state: states[state] for state in STATES}
    target = int(deployment["target_num_replicas"])
    return Replicas(_word(deployment["status"]), target, **counts)


def _word(state: Any) -> str:
    """Serve's states are enumerations in one version and strings in another."""
    return str(getattr(state, "value", state)).lower()


def details() -> dict[str, Any]:
    """Serve's own account of every application: targets, replica states, configuration."""
    import ray
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return {"applications": {}}
    found: dict[str, Any] = ray.get(client._controller.get_serve_instance_details.remote())
    return found


def _start_serve(spec: ServiceSpec, cluster: Cluster, progress: Progress) -> int:
    """Start Serve with our options, or check the options it runs with."""
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    running = details()
    if running.get("http_options"):
        return _check_serve(spec, running)
    port = spec.port or clusters.free_port(spec.host)
    if cluster.ours:
        clusters.check_port(spec.host, port)
    progress(f"starting Ray Serve on {spec.host}:{port}")
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=spec.host, port=port),
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        controller_options={"runtime_env": {"env_vars": SERVE_FLAGS | SERVE_TUNING}},
    )
    return port


def _check_serve(spec: ServiceSpec, running: dict[str, Any]) -> int:
    """The port of a Serve that already runs, if it can carry this spec."""
    options = running["http_options"]
    for name in ("host", "port"):
        wanted, has = getattr(spec, name), options[name]
        if wanted != has and not (name == "port" and wanted == 0):
            raise ClusterError(
                f"{name} = {wanted!r}, but Ray Serve already runs on this cluster with {name} = "
                f"{has!r}, and it cannot change while it runs. Set {name} = {has!r}, or shut "
                "Serve down first."
            )
    proxies = {_actor_class(proxy["actor_name"]) for proxy in running["proxies"].values()}
    if not spec.composed and proxies - {"HAProxyManager"}:
        raise ClusterError(
            "Ray Serve already runs on this cluster without HAProxy, which direct streaming needs "
            "and which cannot be turned on while it runs. Shut Serve down (serve shutdown) and "
            "deploy again, or start it with RAY_SERVE_ENABLE_HA_PROXY=1."
        )
    return int(options["port"])


def _actor_class(name: str) -> str:
    """The class of one of Serve's own actors: a proxy's tells which kind of proxy it is."""
    import ray

    descriptor = ray.get_actor(name, namespace="serve")._ray_actor_creation_function_descriptor
    return str(descriptor.class_name)


def _unchanged(spec: ServiceSpec, key_hashes: tuple[str, ...]) -> bool:
    running = details()["applications"].get(spec.name)
    if running is None or _word(running["status"]) != "running":
        return False
    wanted = application.user_config(spec, key_hashes)
    configs = [d["deployment_config"].get("user_config") for d in running["deployments"].values()]
    return wanted in configs


def _wait(spec: ServiceSpec, progress: Progress) -> None:
    """Return once the application runs; report each change of state on the way."""
    from ray import serve

    began, said = time.monotonic(), ""
    while True:
        status = serve.status().applications[spec.name]
        if status.status == "RUNNING":
            return
        if status.status == "DEPLOY_FAILED":
            raise DeployError(_failure(spec, status))
        if time.monotonic() - began > spec.start_timeout_s:
            raise DeployError(
                f"{spec.name} was not ready after start_timeout_s = {spec.start_timeout_s:g}: "
                f"{_describe(status)}"
            )
        if (now := _describe(status)) != said:
            progress(said := now)
        time.sleep(POLL_S)


def _describe(status: Any) -> str:
    parts = []
    for name, deployment in status.deployments.items():
        states = ", ".join(f"{n} {s.lower()}" for s, n in deployment.replica_states.items() if n)
        parts.append(f"{name}: {states or 'waiting'}")
    return "; ".join(parts) or "waiting for Ray Serve"


def _failure(spec: ServiceSpec, status: Any) -> str:
    """The replica's own account, without the stack of Ray's calls around it."""
    told = [d.message for d in status.deployments.values() if d.status != "HEALTHY" and d.message]
    message = "\n".join(told) or status.message
    _, mark, words = message.rpartition(LAST_WORDS)
    account = f"{mark}{words}".strip() if mark else message
    return f"{spec.name}: a replica of {spec.model.model_id!r} did not start. {account}"
