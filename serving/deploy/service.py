"""Deploy and delete a service on the connected cluster."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from serving.cluster import connection
from serving.cluster.connection import Cluster
from serving.cluster.ports import check_port, free_port
from serving.compat.ray import free_resources
from serving.compat.variables import (
    FORWARD_BODY_FLAGS,
    HAPROXY_PROGRAM,
    LOGGING,
    METRICS_ENV,
    SERVE_FLAGS,
    SERVE_TUNING,
)
from serving.deploy import record, status, terms_store
from serving.deploy.app import application
from serving.deploy.deployments import ONE_MORE_PERCENT, user_config
from serving.deploy.model_files import check_hub
from serving.deploy.preflight import (
    check_resources,
    check_running_serve,
    fits_beside,
    fits_in_memory,
    reads_prompts,
)
from serving.deploy.record import Deployed
from serving.engine.frontend import choose_frontend
from serving.errors import ENGINE_ERROR_MARK, ClusterError, DeployError
from serving.proxy.install import install_on_nodes
from serving.proxy.wrapper import proxy_settings
from serving.quotas import actor as ledger
from serving.spec.model import ModelSpec, deployment_name
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
    replicas; any other change replaces them. Old replicas serve until the new ones are ready if
    the deployments have the same names and the cluster has room for both. If the new service does
    not start, the one that ran before is restored. Without such a service, everything that was
    started is deleted.

    Raises:
        ModelNotFoundError: The hub has no such model; checked only before a service is replaced.
        ResourcesError: A replica can never be placed.
        ClusterError: The cluster's Serve runs without the options that the spec needs.
        DeployError: A replica did not start, or another process deleted the application; the
            message has the engine's own errors, and says whether another service answers.
    """
    replaces = spec.name in status.details()["applications"]
    try:
        check_resources(spec)
        port = _start_serve(spec, cluster, progress)
        for model in spec.engines:
            if model.frontend != "python":
                progress(f"{model.model_id}: {choose_frontend(model)}")
        if _is_unchanged(spec, tenants):
            progress(f"{spec.name}: already running as specified")
        elif replaces:
            _replace(Deployed(spec, tenants), cluster, progress)
        else:
            _start(Deployed(spec, tenants), progress)
    except BaseException:
        if not replaces:
            delete(spec.name, cluster)
        raise
    return port


def _start(service: Deployed, progress: ProgressCallback, surge_percent: int = 0) -> None:
    _submit(service, surge_percent)
    _wait_until_running(service.spec, progress)
    record.save(*service)


def _submit(service: Deployed, surge_percent: int = 0) -> None:
    """Hand the application to Serve without waiting for it."""
    from ray import serve

    spec, tenants = service
    ledger.start_ledger(spec.name)  # It starts in parallel with the engine.
    target = application(spec, tenants, surge_percent)
    run = serve.RunTarget(target=target, name=spec.name, route_prefix=spec.route_prefix)
    with _slow_proxies_allowed():
        serve.run_many([run], wait_for_applications_running=False)


def _replace(service: Deployed, cluster: Cluster, progress: ProgressCallback) -> None:
    """Replace the service of the same name, and restore that one if the new one fails."""
    name = service.spec.name
    previous = _running_service(name)
    new_models = _new_models(service.spec, previous)
    for model in new_models:
        check_hub(model)
    surge_percent = ONE_MORE_PERCENT if _fit_beside(new_models, cluster) else 0
    if new_models and not surge_percent:
        progress(f"{name}: no room for old and new replicas at once; the old ones stop first")
    try:
        _start(service, progress, surge_percent)
    except DeployError as error:
        raise DeployError(f"{error}\n{_restore(name, previous, progress)}") from None
    except BaseException:
        if previous is not None:
            _submit(previous)  # An interrupt does not wait for it.
        raise


def _running_service(name: str) -> Deployed | None:
    """Return the service that runs under this name, or None if it is not known or does not run."""
    recorded = record.load(name)
    return recorded if recorded and _is_unchanged(*recorded) else None


def _new_models(spec: EndpointSpec, previous: Deployed | None) -> list[ModelSpec]:
    """Return the models whose engines have to start."""
    running = set()
    if previous is not None:
        old = previous.spec
        running = {(model.model_id, old.engine_fingerprint(model)) for model in old.engines}
    return [m for m in spec.engines if (m.model_id, spec.engine_fingerprint(m)) not in running]


def _fit_beside(models: list[ModelSpec], cluster: Cluster) -> bool:
    """Return whether the cluster has room for another replica of each model."""
    if cluster.ours and not fits_in_memory(models, psutil.virtual_memory().available / 2**30):
        return False
    return fits_beside(models, free_resources())


def _restore(name: str, previous: Deployed | None, progress: ProgressCallback) -> str:
    """Deploy the previous service again; return a sentence on which service answers."""
    if previous is None:
        return (
            f"The previous service {name!r} was not deployed from here and was not restored. "
            "Deploy it again, or delete it."
        )
    progress(f"{name}: did not start; restoring the previous service")
    models = ", ".join(model.model_id for model in previous.spec.models)
    try:
        _start(previous, progress)
    except DeployError as error:
        return f"No service answers: the previous one ({models}) did not start again. {error}"
    return f"The previous service {name!r} ({models}) is restored and answers."


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
        remove(name)
        terms_store.forget(name)


def remove(name: str) -> None:
    """Delete an application, its quotas and its record. The cluster runs on.

    Raises:
        ClusterError: The application still exists after ``DELETE_TIMEOUT_S``.
    """
    end_application(name)
    ledger.end_ledger(name)
    record.forget(name)


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
    with _slow_proxies_allowed():
        serve.start(
            proxy_location=proxy_location(spec, ray.nodes()),
            http_options=HTTPOptions(host=spec.host, port=port),
            logging_config=LoggingConfig(**LOGGING),
            controller_options={"runtime_env": {"env_vars": variables}},
        )
    return port


@contextlib.contextmanager
def _slow_proxies_allowed() -> Iterator[None]:
    """Ignore that proxies are not ready within Serve's fixed 60 s, which a busy machine exceeds.

    Serve raises this last, after the request has taken effect, and its controller replaces a proxy
    that does not start. `_wait_until_running` waits for a healthy proxy.
    """
    try:
        yield
    except TimeoutError as error:
        if "roxies not available" not in str(error):
            raise


def proxy_location(spec: EndpointSpec, nodes: list[dict[str, Any]]) -> str:
    """Return where Ray Serve runs proxies: on every host, or only on the head.

    Two proxies on one host would need the same port, and a proxy on a loopback address cannot be
    reached from other hosts.
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
    """Report each change of state until the application runs and a proxy is healthy."""
    from ray import serve

    start, reported = time.monotonic(), ""
    while True:
        running = serve.status()
        app = running.applications.get(spec.name)
        if app is None:
            raise DeployError(
                f"application {spec.name} was replaced or deleted by another process while it "
                "started; deploy it again, under another name if another user needs this one"
            )
        proxies = set(running.proxies.values())
        if app.status == "RUNNING" and "HEALTHY" in proxies:
            return
        if app.status == "DEPLOY_FAILED":
            raise DeployError(_failure(spec, app))
        if time.monotonic() - start > spec.start_timeout_s:
            raise DeployError(
                f"{spec.name} was not ready within start_timeout_s = {spec.start_timeout_s:g}: "
                f"{_describe(app, proxies)}. Raise start_timeout_s if it only needs longer."
            )
        if (state := _describe(app, proxies)) != reported:
            progress(state)
            reported = state
        time.sleep(POLL_S)


def _describe(app: Any, proxies: set[Any]) -> str:
    """Return one line with the replicas of each deployment by state, or what else is missing."""
    if app.status == "RUNNING":
        states = ", ".join(sorted(str(state.value).lower() for state in proxies))
        return f"waiting for Ray Serve's proxy ({states or 'not started'})"
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
