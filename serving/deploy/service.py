"""Deploy and delete a service on the connected cluster."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from serving.cluster import connection
from serving.cluster.connection import Cluster
from serving.cluster.ports import check_port, free_port
from serving.compat.variables import (
    FORWARD_BODY_FLAGS,
    HAPROXY_PROGRAM,
    METRICS_ENV,
    SERVE_FLAGS,
    SERVE_TUNING,
)
from serving.deploy import status
from serving.deploy.app import application
from serving.deploy.deployments import user_config
from serving.deploy.preflight import check_resources, check_running_serve, reads_prompts
from serving.errors import ENGINE_ERROR_MARK, ClusterError, DeployError
from serving.proxy.install import install_on_nodes
from serving.proxy.wrapper import proxy_settings
from serving.quotas import actor as ledger
from serving.spec.model import deployment_name
from serving.spec.service import EndpointSpec
from serving.spec.tenants import Tenant

ProgressCallback = Callable[[str], None]
POLL_S = 0.25
CUT_OFF_S = 10.0
"""Seconds after which a deletion cuts off requests in progress."""
DELETE_TIMEOUT_S = 60.0


def deploy(
    spec: EndpointSpec, cluster: Cluster, tenants: tuple[Tenant, ...], progress: ProgressCallback
) -> int:
    """Bring the service up as specified and return the endpoint's port.

    The same spec and keys again return at once. Changed limits, keys and scaling reach running
    replicas; any other change replaces them.

    Raises:
        ResourcesError: A replica can never be placed.
        ClusterError: The cluster's Serve runs without the options that the spec needs.
        DeployError: A replica did not start; the message has the engine's own errors.
    """
    check_resources(spec)
    port = _start_serve(spec, cluster, progress)
    if _is_unchanged(spec, tenants):
        progress(f"{spec.name}: already running as specified")
        return port
    from ray import serve

    ledger.start_ledger(spec.name)  # It starts in parallel with the engine.
    target = serve.RunTarget(
        target=application(spec, tenants), name=spec.name, route_prefix=spec.route_prefix
    )
    serve.run_many([target], wait_for_applications_running=False)
    _wait_until_running(spec, progress)
    return port


def delete(name: str, cluster: Cluster) -> None:
    """Delete an application, and end a cluster of this project with its last one.

    An unknown name is ignored.

    Raises:
        ClusterError: The application still exists after ``DELETE_TIMEOUT_S``.
    """
    applications = status.details()["applications"]
    if cluster.ours and not applications.keys() - {name}:
        connection.disconnect()
    elif name in applications:
        end_application(name)
        ledger.end_ledger(name)


def end_application(name: str) -> None:
    """Delete an application, and cut off its requests in progress after ``CUT_OFF_S``.

    Serve would let a replica finish its requests, so that scaling down loses none; a user
    who deletes a service does not want to wait for that.

    Raises:
        ClusterError: The application still exists after ``DELETE_TIMEOUT_S``.
    """
    from ray import serve

    # Listed before the deletion: another user may deploy under the same name meanwhile.
    replicas = _replica_actors(name)
    serve.delete(name, _blocking=False)
    start = time.monotonic()
    while name in status.details()["applications"]:
        elapsed_s = time.monotonic() - start
        if elapsed_s > DELETE_TIMEOUT_S:
            raise ClusterError(
                f"{name}: Ray Serve has not deleted it within {DELETE_TIMEOUT_S:g} s. See the logs "
                "of Serve's controller, or shut Serve down (serve shutdown)."
            )
        if elapsed_s > CUT_OFF_S:
            _kill(replicas)
        time.sleep(POLL_S)


def _replica_actors(name: str) -> list[str]:
    """The names of an application's replicas as actors of Ray."""
    deployments = status.details()["applications"].get(name, {}).get("deployments", {})
    return [
        replica["actor_name"]
        for deployment in deployments.values()
        for replica in deployment["replicas"]
    ]


def _kill(actors: list[str]) -> None:
    import ray

    for actor in actors:
        with contextlib.suppress(ValueError):  # It has ended.
            ray.kill(ray.get_actor(actor, namespace="serve"))


def _start_serve(spec: EndpointSpec, cluster: Cluster, progress: ProgressCallback) -> int:
    """Start Serve with our options, or check the options it runs with; return its port."""
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    running = status.details()
    if running.get("http_options"):
        return check_running_serve(spec, running)
    port = spec.port or cluster.endpoint or free_port(spec.host)
    if cluster.ours:
        check_port(spec.host, port)
    progress(f"starting Ray Serve on {spec.host}:{port}")
    variables = serve_variables(spec) | METRICS_ENV
    if not cluster.ours:
        variables |= _proxy_program(progress)
    serve.start(
        proxy_location=proxy_location(spec, ray.nodes()),
        http_options=HTTPOptions(host=spec.host, port=port),
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        controller_options={"runtime_env": {"env_vars": variables}},
    )
    return port


def proxy_location(spec: EndpointSpec, nodes: list[dict[str, Any]]) -> str:
    """Return where Ray Serve runs proxies: on every host, or only on the head.

    Two proxies on one host would need the same port. On loopback nobody reaches another host's.
    """
    hosts = {node["NodeManagerHostname"] for node in nodes if node["Alive"]}
    alone = len(hosts) == sum(node["Alive"] for node in nodes)
    reachable = spec.host not in ("127.0.0.1", "localhost", "::1")
    return "EveryNode" if alone and reachable and len(hosts) > 1 else "HeadOnly"


def _proxy_program(progress: ProgressCallback) -> dict[str, str]:
    """Return the variable that names our HAProxy, after installing it on an attached cluster."""
    try:
        program = install_on_nodes()
    except Exception as error:
        cause = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        progress(f"HAProxy runs without limits for connections: {cause[0]}")
        return {}
    return {HAPROXY_PROGRAM: program}


def serve_variables(spec: EndpointSpec) -> dict[str, str]:
    """Return the environment variables of Ray Serve's own actors for this spec."""
    variables = SERVE_FLAGS | SERVE_TUNING | (FORWARD_BODY_FLAGS if reads_prompts(spec) else {})
    return variables | proxy_settings(spec.max_connections_per_address)


def _is_unchanged(spec: EndpointSpec, tenants: tuple[Tenant, ...]) -> bool:
    running = status.details()["applications"].get(spec.name)
    if running is None or status.state_name(running["status"]) != "running":
        return False
    configs = [d["deployment_config"].get("user_config") for d in running["deployments"].values()]
    return user_config(spec, tenants) in configs


def _wait_until_running(spec: EndpointSpec, progress: ProgressCallback) -> None:
    """Report each change of state until the application runs."""
    from ray import serve

    start, reported = time.monotonic(), ""
    while True:
        app = serve.status().applications[spec.name]
        if app.status == "RUNNING":
            return
        if app.status == "DEPLOY_FAILED":
            raise DeployError(_failure(spec, app))
        if time.monotonic() - start > spec.start_timeout_s:
            raise DeployError(
                f"{spec.name} was not ready within start_timeout_s = {spec.start_timeout_s:g}: "
                f"{_describe(app)}. Raise start_timeout_s if it only needs longer."
            )
        if (state := _describe(app)) != reported:
            progress(state)
            reported = state
        time.sleep(POLL_S)


def _describe(app: Any) -> str:
    """Return one line with the replicas of each deployment by state."""
    parts = []
    for name, deployment in app.deployments.items():
        states = ", ".join(f"{n} {s.lower()}" for s, n in deployment.replica_states.items() if n)
        parts.append(f"{name}: {states or 'waiting'}")
    return "; ".join(parts) or "waiting for Ray Serve"


def _failure(spec: EndpointSpec, app: Any) -> str:
    """Return the failed replica's report without Ray's stack trace."""
    messages = {
        name: deployment.message
        for name, deployment in app.deployments.items()
        if deployment.status != "HEALTHY" and deployment.message
    }
    message = "\n".join(messages.values()) or app.message
    _, mark, errors = message.rpartition(ENGINE_ERROR_MARK)
    cause = f"{mark}{errors}".strip() if mark else message
    model_ids = {deployment_name(model): model.model_id for model in spec.engines}
    failed = next((model_ids.get(name, name) for name in messages), spec.models[0].model_id)
    return f"{spec.name}: a replica of {failed!r} did not start. {cause}"
