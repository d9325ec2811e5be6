"""A RayService for KubeRay: one head, one group of workers a model, and what each pod needs."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from typing import Any

import yaml

from serving.sizing.checks import architecture_of, data_types_of, layout_of
from serving.sizing.memory import GIB, weight_bytes
from serving.spec.model import ModelSpec
from serving.spec.service import EndpointSpec
from serving.spec.tenants import HASHES_VARIABLE

USER = 1000
"""The image's user (deploy/Dockerfile)."""
HEALTH = {"httpGet": {"path": "/api/healthz", "port": 52365}}
"""Ray's own agent answers for the raylet, and on the head for the control service too."""
HEAD = {"cpu": "2", "memory": "8Gi"}
PROCESSES_GIB = 6.0
"""What a replica's processes take beside weights and KV cache, with room to load a model."""
UNKNOWN_GIB = 32.0
"""Memory of a pod whose model's size is not known here."""


def ray_service(
    spec: EndpointSpec,
    serve_config: Mapping[str, Any],
    image: str,
    environment: Mapping[str, str],
    keys_from_secret: bool,
) -> dict[str, Any]:
    """The RayService; ``environment`` goes into every container."""
    variables = [{"name": name, "value": value} for name, value in environment.items()]
    variables += secrets(spec.name, keys_from_secret)
    groups = [worker_group(model, image, variables) for model in spec.engines]
    if spec.auxiliary_cpus:
        groups.append(helper_group(spec.auxiliary_cpus, image, variables))
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
    """Variables out of Kubernetes secrets: none of their values stands in the manifest."""
    hub = {"name": f"{name}-hub", "key": "token", "optional": True}
    found = [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": hub}}]
    if keys:
        hashes = {"name": f"{name}-keys", "key": "key-hashes"}
        found.append({"name": HASHES_VARIABLE, "valueFrom": {"secretKeyRef": hashes}})
    return found


def head_group(image: str, variables: list[dict[str, Any]]) -> dict[str, Any]:
    """The head: the control service, Serve's controller and its proxy; no replica."""
    ports = {"gcs": 6379, "dashboard": 8265, "client": 10001, "serve": 8000}
    container = _container("ray-head", image, variables, HEAD, HEAD)
    container["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    return {
        "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
        "template": {"spec": _pod(container)},
    }


def worker_group(model: ModelSpec, image: str, variables: list[dict[str, Any]]) -> dict[str, Any]:
    """Pods for a model's replicas: as many as its scaling may ask for, and no more."""
    per_pod, pods = pods_of_a_replica(model)
    fewest, most = (
        math.ceil(count * pods)
        for count in (model.scaling.min_replicas, model.scaling.max_replicas)
    )
    cpus = math.ceil(model.num_cpus * per_pod) + (model.accelerator == "gpu")
    resources = {"cpu": str(cpus), "memory": f"{math.ceil(memory_gib(model, per_pod))}Gi"}
    if model.accelerator == "gpu":
        resources["nvidia.com/gpu"] = str(math.ceil((model.num_gpus or 1.0) * per_pod))
    pod = _pod(_container("ray-worker", image, variables, resources, resources))
    start: dict[str, str] = {}
    if model.accelerator == "gpu":
        pod["tolerations"] = [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        ]
    if model.accelerator_type is not None:
        # Lets the autoscaler know, while no pod runs, that this group has what bundles ask for.
        start["resources"] = f'"{{\\"accelerator_type:{model.accelerator_type}\\": 1}}"'
    return _group(group_name(model.model_id), fewest, most, start, pod)


def helper_group(cpus: float, image: str, variables: list[dict[str, Any]]) -> dict[str, Any]:
    """One pod for guardrail and router, which load no model."""
    resources = {"cpu": str(math.ceil(cpus)), "memory": "8Gi"}
    pod = _pod(_container("ray-worker", image, variables, resources, resources))
    return _group("helpers", 1, 1, {}, pod)


def _group(
    name: str, fewest: int, most: int, start: dict[str, str], pod: dict[str, Any]
) -> dict[str, Any]:
    return {
        "groupName": name,
        "replicas": fewest,
        "minReplicas": fewest,
        "maxReplicas": most,
        "rayStartParams": start,
        "template": {"spec": pod},
    }


def pods_of_a_replica(model: ModelSpec) -> tuple[int, float]:
    """Engine workers in one pod, and pods of one replica (less than 1 where replicas share one).

    A tensor-parallel group stays in a pod; pipeline stages and data-parallel ranks may be apart.
    """
    if model.accelerator == "cpu":
        return model.workers, float(model.data_parallel_size)
    share = model.num_gpus or 1.0
    if share < 1:
        return int(1 / share), 1 / int(1 / share)
    pods = model.pipeline_parallel_size * model.data_parallel_size
    return model.tensor_parallel_size, float(pods)


def memory_gib(model: ModelSpec, per_pod: int) -> float:
    """Memory of a pod: what the spec names, or weights, KV cache and processes."""
    if model.memory_gib is not None:
        return model.memory_gib + PROCESSES_GIB
    known = architecture_of(model)
    if known is None:
        return UNKNOWN_GIB
    weights = per_pod * weight_bytes(known, layout_of(model), data_types_of(model)) / GIB
    # On a GPU's host, weights pass through memory once while they load.
    cache = per_pod * model.kv_cache_gib if model.accelerator == "cpu" else 0.0
    return PROCESSES_GIB + weights + cache


def group_name(model_id: str) -> str:
    """A model's id as a Kubernetes name."""
    plain = "".join(c if c.isalnum() else "-" for c in model_id.lower())
    return plain.strip("-")[:50]


def _container(
    name: str,
    image: str,
    variables: list[dict[str, Any]],
    requests: Mapping[str, str],
    limits: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "env": variables,
        "resources": {"requests": dict(requests), "limits": dict(limits)},
        "readinessProbe": {**HEALTH, "initialDelaySeconds": 10, "periodSeconds": 5},
        "livenessProbe": {**HEALTH, "periodSeconds": 10, "failureThreshold": 12},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        # Workers of one replica pass tensors through it; the default of 64 MiB is too small.
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }


def _pod(container: dict[str, Any]) -> dict[str, Any]:
    return {
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER},
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }


def usage(spec: EndpointSpec, keys_from_secret: bool) -> str:
    """How to use the manifest, as YAML comments."""
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
