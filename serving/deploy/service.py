"""Deploy and delete a service on the connected cluster."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from serving import SERVE_FLAGS
from serving.cluster import connection as clusters
from serving.cluster.connection import FORWARD_BODY, METRICS_ENV, SERVE_TUNING, Cluster
from serving.cluster.ports import check_port, free_port
from serving.deploy import app as application
from serving.deploy import preflight, status
from serving.deploy.deployments import user_config
from serving.deploy.preflight import check_serve, reads_prompts
from serving.errors import LAST_WORDS, ClusterError, DeployError
from serving.quotas import actor as ledger
from serving.spec.model import deployment_name
from serving.spec.service import EndpointSpec
from serving.spec.tenants import Tenant

Progress = Callable[[str], None]
POLL_S = 0.25
CUT_S, DELETED_S = 10.0, 60.0
"""Of a deletion: when what is still answered is cut off, and when it has failed."""


def deploy(
    spec: EndpointSpec, cluster: Cluster, tenants: tuple[Tenant, ...], progress: Progress
) -> int:
    """Bring the service up as specified and return the endpoint's port.

    The same spec and keys again return at once; changed limits, keys and scaling reach running
    replicas; anything else replaces them.

    Raises:
        ResourcesError: a replica can never be placed.
        ClusterError: the cluster's Serve runs without what the spec needs.
        DeployError: a replica did not start; the message has the engine's last words.
    """
    preflight.check_fit(spec)
    port = _start_serve(spec, cluster, progress)
    if _unchanged(spec, tenants):
        progress(f"{spec.name}: already running as specified")
        return port
    from ray import serve

    ledger.start_ledger(spec.name)  # comes up beside the engine
    target = serve.RunTarget(
        target=application.application(spec, tenants),
        name=spec.name,
        route_prefix=spec.route_prefix,
    )
    serve.run_many([target], wait_for_applications_running=False)
    _wait(spec, progress)
    return port


def delete(name: str, cluster: Cluster) -> None:
    """Delete one application; a cluster of ours ends with its last one. Unknown names are done.

    Raises:
        ClusterError: it is still there after ``DELETED_S``.
    """
    others = [other for other in status.details()["applications"] if other != name]
    if cluster.ours and not others:
        clusters.disconnect()
    elif name in status.details()["applications"]:
        end_application(name)
        ledger.end_ledger(name)


def end_application(name: str) -> None:
    """Delete an application, and cut off what it still answers after ``CUT_S``.

    A replica that stops has as long as a request may take, so that fewer replicas lose no request;
    who deletes a service means it.
    """
    from ray import serve

    # Those that are there now: another may deploy under the same name meanwhile.
    doomed = _actors(name)
    serve.delete(name, _blocking=False)
    began = time.monotonic()
    while name in status.details()["applications"]:
        waited = time.monotonic() - began
        if waited > DELETED_S:
            raise ClusterError(f"{name}: Ray Serve has not deleted it after {DELETED_S:g} s.")
        if waited > CUT_S:
            _kill(doomed)
        time.sleep(POLL_S)


def _actors(name: str) -> list[str]:
    """The names of an application's replicas, as Ray's actors."""
    app = status.details()["applications"].get(name, {"deployments": {}})
    return [one["actor_name"] for each in app["deployments"].values() for one in each["replicas"]]


def _kill(actors: list[str]) -> None:
    import ray

    for actor in actors:
        with contextlib.suppress(ValueError):  # it has ended
            ray.kill(ray.get_actor(actor, namespace="serve"))


def _start_serve(spec: EndpointSpec, cluster: Cluster, progress: Progress) -> int:
    """Start Serve with our options, or check the options it runs with."""
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    running = status.details()
    if running.get("http_options"):
        return check_serve(spec, running)
    port = spec.port or cluster.endpoint or free_port(spec.host)
    if cluster.ours:
        check_port(spec.host, port)
    progress(f"starting Ray Serve on {spec.host}:{port}")
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=spec.host, port=port),
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        controller_options={"runtime_env": {"env_vars": serve_variables(spec) | METRICS_ENV}},
    )
    return port


def serve_variables(spec: EndpointSpec) -> dict[str, str]:
    """The environment of Ray Serve's own actors, as this spec needs it."""
    return SERVE_FLAGS | SERVE_TUNING | (FORWARD_BODY if reads_prompts(spec) else {})


def _unchanged(spec: EndpointSpec, tenants: tuple[Tenant, ...]) -> bool:
    running = status.details()["applications"].get(spec.name)
    if running is None or status.word(running["status"]) != "running":
        return False
    wanted = user_config(spec, tenants)
    configs = [d["deployment_config"].get("user_config") for d in running["deployments"].values()]
    return wanted in configs


def _wait(spec: EndpointSpec, progress: Progress) -> None:
    """Return once the application runs; report each change of state on the way."""
    from ray import serve

    began, said = time.monotonic(), ""
    while True:
        told = serve.status().applications[spec.name]
        if told.status == "RUNNING":
            return
        if told.status == "DEPLOY_FAILED":
            raise DeployError(_failure(spec, told))
        if time.monotonic() - began > spec.start_timeout_s:
            raise DeployError(
                f"{spec.name} was not ready after start_timeout_s = {spec.start_timeout_s:g}: "
                f"{_describe(told)}"
            )
        if (now := _describe(told)) != said:
            progress(said := now)
        time.sleep(POLL_S)


def _describe(told: Any) -> str:
    parts = []
    for name, deployment in told.deployments.items():
        states = ", ".join(f"{n} {s.lower()}" for s, n in deployment.replica_states.items() if n)
        parts.append(f"{name}: {states or 'waiting'}")
    return "; ".join(parts) or "waiting for Ray Serve"


def _failure(spec: EndpointSpec, app: Any) -> str:
    """The replica's own account, without the stack of Ray's calls around it."""
    told = {
        name: deployment.message
        for name, deployment in app.deployments.items()
        if deployment.status != "HEALTHY" and deployment.message
    }
    message = "\n".join(told.values()) or app.message
    _, mark, words = message.rpartition(LAST_WORDS)
    account = f"{mark}{words}".strip() if mark else message
    named = {deployment_name(model): model.model_id for model in spec.engines}
    failed = next((named.get(name, name) for name in told), spec.models[0].model_id)
    return f"{spec.name}: a replica of {failed!r} did not start. {account}"
