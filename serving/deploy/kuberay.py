"""A RayService for KubeRay: a head, a group of worker pods for each model, and their resources."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from typing import Any

import yaml

from serving.sizing.checks import architecture_of, data_types_of, layout_of
from serving.sizing.memory import GIB, weight_bytes
from serving.spec.model import PREFILL_SUFFIX, ModelSpec, PrefillModel
from serving.spec.service import EndpointSpec
from serving.spec.tenants import HASHES_VARIABLE

USER = 1000
"""The image's user (deploy/Dockerfile)."""
HEALTH_CHECK = {"httpGet": {"path": "/api/healthz", "port": 52365}}
"""Ray's agent answers for the raylet, and on the head for the control service too."""
HEAD_RESOURCES = {"cpu": "2", "memory": "8Gi"}
PROCESSES_GIB = 6.0
"""Memory of a replica's processes besides weights and KV cache, with room to load a model."""
DEFAULT_GIB = 32.0
"""Memory of a pod whose model's size is unknown here."""


def ray_service(
    spec: EndpointSpec,
    serve_config: Mapping[str, Any],
    image: str,
    environment: Mapping[str, str],
    keys_from_secret: bool,
) -> dict[str, Any]:
    """Return the RayService.

    Args:
        spec: The specification.
        serve_config: The Serve config that the RayService deploys.
        image: The image of every container.
        environment: Variables of every container.
        keys_from_secret: Whether the hashes of keys come from a Kubernetes secret.
    """
    variables = [{"name": name, "value": value} for name, value in environment.items()]
    variables += secrets(spec.name, keys_from_secret)
    groups = [worker_group(model, image, variables) for model in spec.engines]
    if spec.auxiliary_cpus:
        groups.append(auxiliary_group(spec.auxiliary_cpus, image, variables))
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": spec.name},
        "spec": {
            "serveConfigV2": yaml.safe_dump(dict(serve_config), sort_keys=False),
            "rayClusterConfig": {
                "rayVersion": importlib.metadata.version("ray"),
                "authOptions": {"mode": "token"},
                "enableInTreeAutoscaling": True,
                "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 300},
                "headGroupSpec": head_group(image, variables),
                "workerGroupSpecs": groups,
            },
        },
    }


def secrets(name: str, keys: bool) -> list[dict[str, Any]]:
    """Return the variables that come from Kubernetes secrets, so that no value is in the file."""
    hub = {"name": f"{name}-hub", "key": "token", "optional": True}
    variables = [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": hub}}]
    if keys:
        hashes = {"name": f"{name}-keys", "key": "key-hashes"}
        variables.append({"name": HASHES_VARIABLE, "valueFrom": {"secretKeyRef": hashes}})
    return variables


def head_group(image: str, variables: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the head: the control service, Serve's controller and its proxy, but no replica."""
    ports = {"gcs": 6379, "dashboard": 8265, "client": 10001, "serve": 8000}
    container = _container("ray-head", image, variables, HEAD_RESOURCES)
    container["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    return {
        "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
        "template": {"spec": _pod(container)},
    }


MAX_NAME = 50
"""Characters of a group's name, to which Kubernetes appends more."""


def worker_group(model: ModelSpec, image: str, variables: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the pods of a model's replicas: as many as its scaling allows."""
    workers, pods = pods_of_a_replica(model)
    scaling = model.scaling
    low, high = (math.ceil(n * pods) for n in (scaling.min_replicas, scaling.max_replicas))
    cpus = math.ceil(model.num_cpus * workers) + (model.accelerator == "gpu")
    resources = {"cpu": str(cpus), "memory": f"{math.ceil(memory_gib(model, workers))}Gi"}
    if model.accelerator == "gpu":
        resources["nvidia.com/gpu"] = str(math.ceil((model.num_gpus or 1.0) * workers))
    pod = _pod(_container("ray-worker", image, variables, resources))
    start_params: dict[str, str] = {}
    if model.accelerator == "gpu":
        pod["tolerations"] = [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        ]
    if model.accelerator_type is not None:
        # Tells the autoscaler that this group has what the bundles ask for while no pod runs.
        resource = f"accelerator_type:{model.accelerator_type}"
        start_params["resources"] = f'"{{\\"{resource}\\": 1}}"'
    suffix = PREFILL_SUFFIX if isinstance(model, PrefillModel) else ""
    name = group_name(model.model_id)[: MAX_NAME - len(suffix)] + suffix
    return _group(name, low, high, start_params, pod)


def auxiliary_group(cpus: float, image: str, variables: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one pod for guardrail and router, which load no model."""
    resources = {"cpu": str(math.ceil(cpus)), "memory": "8Gi"}
    pod = _pod(_container("ray-worker", image, variables, resources))
    return _group("helpers", 1, 1, {}, pod)


def _group(
    name: str, low: int, high: int, start_params: dict[str, str], pod: dict[str, Any]
) -> dict[str, Any]:
    return {
        "groupName": name,
        "replicas": low,
        "minReplicas": low,
        "maxReplicas": high,
        "rayStartParams": start_params,
        "template": {"spec": pod},
    }


def pods_of_a_replica(model: ModelSpec) -> tuple[int, float]:
    """Return the engine workers in a pod and the pods of a replica.

    The number of pods is below 1 where replicas share a pod. A tensor-parallel group stays in one
    pod; pipeline stages and data-parallel ranks may be in different pods.
    """
    if model.accelerator == "cpu":
        return model.workers, float(model.data_parallel_size)
    share = model.num_gpus or 1.0
    if share < 1:
        return int(1 / share), 1 / int(1 / share)
    pods = model.pipeline_parallel_size * model.data_parallel_size
    return model.tensor_parallel_size, float(pods)


def memory_gib(model: ModelSpec, workers: int) -> float:
    """Return the memory of a pod in GiB: the spec's, or that of weights, KV cache and processes."""
    if model.memory_gib is not None:
        return model.memory_gib + PROCESSES_GIB
    architecture = architecture_of(model)
    if architecture is None:
        return DEFAULT_GIB
    weights = workers * weight_bytes(architecture, layout_of(model), data_types_of(model)) / GIB
    # On a GPU's host the weights pass through memory once, while they load.
    cache = workers * model.kv_cache_gib if model.accelerator == "cpu" else 0.0
    return PROCESSES_GIB + weights + cache


def group_name(model_id: str) -> str:
    """Return a model's id as a Kubernetes name."""
    plain = "".join(c if c.isalnum() else "-" for c in model_id.lower())
    return plain.strip("-")[:MAX_NAME]


def _container(
    name: str, image: str, variables: list[dict[str, Any]], resources: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "env": variables,
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "readinessProbe": {**HEALTH_CHECK, "initialDelaySeconds": 10, "periodSeconds": 5},
        "livenessProbe": {**HEALTH_CHECK, "periodSeconds": 10, "failureThreshold": 12},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        # Workers of a replica pass tensors through it; the default of 64 MiB is too small.
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }


def _pod(container: dict[str, Any]) -> dict[str, Any]:
    return {
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER},
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }


def usage_comment(spec: EndpointSpec, keys_from_secret: bool) -> str:
    """Return how to use the manifest, as YAML comments."""
    name = spec.name
    lines = [f"kubectl apply -f FILE, then: kubectl port-forward service/{name}-serve-svc 8000"]
    if keys_from_secret:
        lines.append(
            f"First: kubectl create secret generic {name}-keys --from-literal=key-hashes=SHA256,..."
        )
    lines.append(
        f"For a gated model: kubectl create secret generic {name}-hub --from-literal=token=..."
    )
    return "".join(f"# {line}\n" for line in lines)
