"""Private API of Ray and Ray Serve, checked against Ray 2.60.0. Light to import.

Each docstring names the upstream code. The base classes of replicas, which import
Ray Serve LLM, are in ``ray_server``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

START_TIMED_OUT = "timed out during startup"
"""In the log of ``ray start`` if a head did not come up within 30 s (``ray._private.node``)."""

AGENT_FAILED = "one Ray agent failed, agent_name = "
"""In the standard error of a raylet that ends because its agent did (Ray's C++ core)."""

RAYLET = "raylet"
GCS_FLAG = "--gcs-address="
"""The process of a node, and the argument that names its cluster (``ray._private.services``)."""

HEAD_RESOURCE = "node:__internal_head__"
"""A resource that only the head has (``ray._common.constants.HEAD_NODE_RESOURCE_NAME``)."""

GCS_PROBE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
CLIENT_PROBE = "/ray.rpc.RayletDriver/ClusterInfo"
"""gRPC methods that only Ray's control service and only a Ray Client server implement
(``ray.core.generated``)."""

HAPROXY_ACTOR = "HAProxyManager"
"""The class of the proxy actors that run HAProxy (``ray.serve._private.haproxy``)."""

LLM_ROUTER = "ray.llm._internal.serve.core.ingress.router.LLMRouter"
"""The deployment that HAProxy asks for a replica on the direct path."""

ROUND_ROBIN_ROUTER = "ray.serve.experimental.round_robin_router.RoundRobinRouter"
POWER_OF_TWO_ROUTER = "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter"
SESSION_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
KV_AWARE_ROUTER = "ray.llm._internal.serve.routing_policies.kv_aware.kv_aware_router.KVAwareRouter"
"""Request routers by import path, as ``RequestRouterConfig`` takes them."""

KV_LLM_ROUTER_NAME = "LLMRouter"
"""Name by which engines look up the deployment of ``LLM_ROUTER`` for KV-aware routing
(``ray.llm._internal.serve.routing_policies.kv_aware.kv_token_tracker``)."""

TOTAL_REQUESTS = "serve_autoscaling_total_requests"
TARGET_ONGOING = "serve_autoscaling_target_ongoing_requests"
HANDLE_QUEUE = "serve_deployment_queued_queries"
IN_FLIGHT = "serve_num_ongoing_http_requests"
HTTP_REQUESTS = "serve_num_http_requests"
"""Ray Serve's metrics (``ray.serve._private``), as a node exports them after ``ray_``."""

GPU_METRICS = {
    "node_gpus_utilization": "utilization",
    "node_gram_used": "memory_gib",
    "node_gpu_power_milliwatts": "power_w",
}
"""Ray's metrics of a GPU (``ray.dashboard.modules.reporter.reporter_agent``), in percent, MiB and
milliwatts, and the field of a ``GpuSample`` that each fills."""


def enable_token_auth() -> None:
    """Let this process, which has imported Ray already, announce its token.

    Calls ``ray._private.authentication.authentication_token_setup._enable_token_auth()``.
    """
    from ray._private.authentication import authentication_token_setup

    authentication_token_setup._enable_token_auth()


def version_mismatch(message: str) -> tuple[str, str] | None:
    """Return the versions of the cluster and of this process that an error of Ray names.

    Reads the lines ``Ray: VERSION`` and ``Python: VERSION`` that
    ``ray._private.utils.check_version_info`` writes for each of the two.

    Returns:
        Two texts such as "Ray 2.60.0 on Python 3.11.9", or None if the error is another one.
    """
    versions = re.findall(r"^\s*Ray: (\S+)\s+Python: (\S+)", message, re.MULTILINE)
    if len(versions) != 2:
        return None
    cluster, process = (f"Ray {ray} on Python {python}" for ray, python in versions)
    return cluster, process


def imported_without_haproxy() -> bool:
    """Return whether this process has imported Ray Serve without the HAProxy flag.

    Reads ``ray.serve._private.constants.RAY_SERVE_ENABLE_HA_PROXY``, which is set at import.
    """
    constants = sys.modules.get("ray.serve._private.constants")
    return constants is not None and not constants.RAY_SERVE_ENABLE_HA_PROXY


def forget_serve_client() -> None:
    """Forget the Serve controller that this process has cached, if any.

    Calls ``ray.serve.context._disconnect()``. Ray Serve recognizes the cluster of a cached
    controller by the driver's job id. The first driver of every cluster has the same job id, so a
    process that joins a second cluster would ask the controller of the first one.
    """
    if (context := sys.modules.get("ray.serve.context")) is not None:
        context._disconnect()


def serve_details(timeout_s: float | None = None) -> dict[str, Any] | None:
    """Return ``ServeInstanceDetails`` as plain data, or None if Serve does not run.

    Calls ``ray.serve.context._get_global_client()`` and the method
    ``get_serve_instance_details()`` of its ``_controller``.

    Raises:
        ray.exceptions.GetTimeoutError: The controller does not answer within ``timeout_s``.
    """
    import ray
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    details: dict[str, Any] = ray.get(
        client._controller.get_serve_instance_details.remote(), timeout=timeout_s
    )
    return details


def with_version(deployment: Any, version: str) -> Any:
    """Return a deployment whose running replicas are replaced only if ``version`` changes.

    ``ray.serve.deployment.Deployment.options`` takes ``version`` only with ``_internal=True``.
    """
    return deployment.options(version=version, _internal=True)


def with_ingress_router(application: Any, router: Any) -> Any:
    """Return the application with ``router`` choosing a replica for each request.

    Calls ``ray.serve.deployment.Application._with_ingress_request_router()``, which direct
    streaming is built on.
    """
    return application._with_ingress_request_router(router)


def actor_class(name: str) -> str:
    """Return the class of an actor of Ray Serve, which identifies the kind of a proxy.

    Reads ``_ray_actor_creation_function_descriptor`` of ``ray.actor.ActorHandle``.
    """
    return str(_on_cluster(_actor_class, name))


def forwards_bodies(proxy: str) -> bool:
    """Return whether the proxy with this actor name shows request bodies to Serve's router.

    Reads ``ray.serve._private.constants.RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY`` in the
    proxy's process, by ``__ray_call__`` of ``ray.actor.ActorHandle``.
    """

    # A nested function is pickled by value: the proxy may be unable to import this package.
    def read_flag(actor: Any) -> bool:
        from ray.serve._private import constants

        return bool(constants.RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY)

    return bool(_on_cluster(_call_in_actor, proxy, read_flag))


def proxy_variable(proxy: str, name: str) -> str | None:
    """Return an environment variable of the proxy with this actor name, or None.

    Runs a function there by ``__ray_call__`` of ``ray.actor.ActorHandle``.
    """

    # See forwards_bodies.
    def read_variable(actor: Any) -> str | None:
        import os

        return os.environ.get(name)

    value: str | None = _on_cluster(_call_in_actor, proxy, read_variable)
    return value


def _on_cluster(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function here, or under Ray Client in a task on the cluster.

    Ray Client's actor handles lack the private attributes of others. Reads
    ``ray.util.client.ray.is_connected()``.
    """
    import ray

    if not ray.util.client.ray.is_connected():
        return call(*arguments)
    task: Any = ray.remote(num_cpus=0)(call)
    return ray.get(task.remote(*arguments))


def _actor_class(name: str) -> str:
    import ray

    descriptor = ray.get_actor(name, namespace="serve")._ray_actor_creation_function_descriptor
    return str(descriptor.class_name)


def _call_in_actor(name: str, function: Callable[[Any], Any]) -> Any:
    import ray

    return ray.get(ray.get_actor(name, namespace="serve").__ray_call__.remote(function))


def free_resources() -> list[dict[str, float]]:
    """Return the resources of each live node that nothing has reserved.

    Calls ``ray._private.state.available_resources_per_node()``.
    """
    return list(_on_cluster(_available_resources).values())


def _available_resources() -> dict[str, dict[str, float]]:
    from ray._private import state

    resources: dict[str, dict[str, float]] = state.available_resources_per_node()
    return resources


def load_value(key: str) -> bytes | None:
    """Return what the cluster's key-value store holds for ``key``, or None.

    Calls ``ray.experimental.internal_kv._internal_kv_get(key)``.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    value: bytes | None = _internal_kv_get(key)
    return value


def started_by_init() -> bool:
    """Return whether the connected cluster was started by ``ray.init()``, and ends with its caller.

    Reads the field ``ray_init_cluster`` of what ``ray._common.usage.usage_lib`` stores.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    metadata = _internal_kv_get("CLUSTER_METADATA", namespace="cluster")
    return bool(metadata and json.loads(metadata)["ray_init_cluster"])


def store_value(key: str, value: bytes) -> None:
    """Put ``value`` into the cluster's key-value store, which outlives every actor.

    Calls ``ray.experimental.internal_kv._internal_kv_put(key, value, overwrite=True)``.
    """
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key, value, overwrite=True)


def delete_value(key: str) -> None:
    """Delete ``key`` from the cluster's key-value store.

    Calls ``ray.experimental.internal_kv._internal_kv_del(key)``.
    """
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(key)


def stored_keys(prefix: str) -> list[str]:
    """Return the keys in the cluster's key-value store that begin with ``prefix``.

    Calls ``ray.experimental.internal_kv._internal_kv_list(prefix)``.
    """
    from ray.experimental.internal_kv import _internal_kv_list

    return [key.decode() for key in _internal_kv_list(prefix)]


def session_id(headers: Mapping[str, str]) -> str | None:
    """Return the session of a request by its headers, or None.

    Calls ``ray.serve._private.http_util.session_id_from_headers(headers)``.
    """
    from ray.serve._private.http_util import session_id_from_headers

    session: str | None = session_id_from_headers(headers)
    return session
