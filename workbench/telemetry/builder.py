"""Build samples from Serve's details and the nodes' metrics. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.compat.ray import (
    GPU_METRICS,
    HANDLE_QUEUE,
    HTTP_REQUESTS,
    IN_FLIGHT,
    TARGET_ONGOING,
    TOTAL_REQUESTS,
)
from serving.compat.vllm import ENGINE_METRICS, TRANSFER_METRICS
from serving.deploy.status import state_name
from workbench.records import (
    DecisionSample,
    DeploymentSample,
    GpuSample,
    ProxySample,
    ReplicaSample,
    Sample,
)
from workbench.telemetry.decisions import DecisionLog, ScalingLimits
from workbench.telemetry.metrics_page import (
    GATE_QUEUED,
    GATE_SHED,
    POLICY_DESIRED,
    POLICY_LED,
    POLICY_SAW,
    MetricsPage,
    merge_pages,
    total_of,
)

SHED_STATUSES = ("429", "503")
_GPU_UNITS = {"utilization": 100.0, "memory_gib": 1024.0, "power_w": 1000.0}
Pages = Mapping[str, MetricsPage]
"""The metrics of each node that answered, by node id."""


@dataclass(frozen=True)
class _Deployment:
    """The details and metrics of one deployment at one moment."""

    now_s: float
    name: str
    application: str
    details: Mapping[str, Any]
    pages: Pages
    merged: MetricsPage

    def total(self, metric: str) -> float | None:
        """Return the sum of a metric of this deployment."""
        return self.merged.total(metric, **self._labels)

    def rows(self, metric: str) -> Iterator[tuple[dict[str, str], float]]:
        """Yield the labels and values of a metric of this deployment."""
        return self.merged.rows(metric, **self._labels)

    @property
    def target(self) -> int:
        """The number of replicas that Serve aims at."""
        return int(self.details["target_num_replicas"])

    @property
    def has_workbench_policy(self) -> bool:
        """Whether the policy is from `serving.deploy.autoscaling`, which exports its metrics."""
        config = self.details["deployment_config"].get("autoscaling_config") or {}
        policy = (config.get("policy") or {}).get("policy_function", "")
        return str(policy).startswith("serving.")

    @property
    def _labels(self) -> dict[str, str]:
        return {"deployment": self.name, "application": self.application}


@dataclass
class SampleBuilder:
    """Builds the samples of one application.

    It remembers what the details of one moment lack: the last target of each deployment, and how
    many requests replicas that no longer exist had refused. `engines` are the deployments that run
    an engine.
    """

    application: str
    engines: frozenset[str]
    _logs: dict[str, DecisionLog] = field(default_factory=dict)
    _shed: dict[str, dict[str, int]] = field(default_factory=dict)

    def samples(self, now_s: float, details: Mapping[str, Any], pages: Pages) -> list[Sample]:
        """Return the samples of this moment, from Serve's details and the nodes' metrics."""
        samples: list[Sample] = []
        merged = merge_pages(pages.values())
        for name, own in details["applications"][self.application]["deployments"].items():
            deployment = _Deployment(now_s, name, self.application, own, pages, merged)
            replicas = list(self._replicas(deployment))
            sample = self._deployment(deployment, replicas)
            samples += [sample, *replicas, *self._decisions(sample, deployment)]
        samples += proxies(now_s, details.get("proxies", {}), pages, self.application)
        return samples + list(gpus(now_s, pages))

    def flush(self) -> list[DecisionSample]:
        """Return the decisions that still wait for their policy's metrics."""
        return [decision for log in self._logs.values() for decision in log.close()]

    def _deployment(
        self, deployment: _Deployment, replicas: list[ReplicaSample]
    ) -> DeploymentSample:
        own_replicas = deployment.details["replicas"]
        states = [state_name(replica["state"]) for replica in own_replicas]
        counts = {state: states.count(state) for state in ("running", "starting", "stopping")}
        nodes = [replica.get("node_id") for replica in own_replicas]
        incomplete = any(node and node not in deployment.pages for node in nodes)
        waiting = [
            deployment.total(HANDLE_QUEUE),
            deployment.total(GATE_QUEUED),
            *(replica.waiting_requests for replica in replicas),
        ]
        return DeploymentSample(
            time_s=deployment.now_s,
            deployment=deployment.name,
            target=deployment.target,
            **counts,
            desired=_desired(deployment, counts["running"]),
            total_requests=deployment.total(TOTAL_REQUESTS),
            queued_requests=None if incomplete else total_of(waiting),
            shed=self._refused(deployment),
        )

    def _refused(self, deployment: _Deployment) -> int | None:
        by_replica = self._shed.setdefault(deployment.name, {})
        for labels, value in deployment.rows(GATE_SHED):
            by_replica[labels.get("replica", "")] = int(value)
        return sum(by_replica.values()) if by_replica else None

    def _replicas(self, deployment: _Deployment) -> Iterator[ReplicaSample]:
        if deployment.name not in self.engines:
            return
        for replica in deployment.details["replicas"]:
            if replica.get("node_id") in deployment.pages:
                yield ReplicaSample(
                    time_s=deployment.now_s,
                    deployment=deployment.name,
                    replica=replica["replica_id"],
                    node=replica["node_id"],
                    state=state_name(replica["state"]),
                    **engine_metrics(deployment.merged, replica["replica_id"]),
                )

    def _decisions(self, sample: DeploymentSample, deployment: _Deployment) -> list[DecisionSample]:
        config = deployment.details["deployment_config"].get("autoscaling_config")
        saw, led = (
            {labels["figure"]: value for labels, value in deployment.rows(metric)}
            for metric in (POLICY_SAW, POLICY_LED)
        )
        log = self._logs.setdefault(sample.deployment, DecisionLog())
        limits = ScalingLimits.from_config(config)
        return log.observe(sample, limits, saw, led if deployment.has_workbench_policy else None)


def _desired(deployment: _Deployment, running: int) -> int | None:
    """Return what the policy requests: reported by a workbench policy, computed for Serve's own.

    Serve's gauge of this name has the result of the policy after the delays.
    """
    # Serve wakes a deployment without replicas by its own rule, without calling the policy.
    if running and deployment.has_workbench_policy:
        desired = deployment.total(POLICY_DESIRED)
    else:
        desired = desired_by_requests(
            deployment.total(TOTAL_REQUESTS),
            deployment.total(TARGET_ONGOING),
            running,
            deployment.target,
        )
    return None if desired is None else math.ceil(desired - 1e-9)


def desired_by_requests(
    total: float | None, target_ongoing: float | None, running: int, target: int
) -> float | None:
    """Return what Serve's own policy requests: `total` / `target_ongoing`, which Serve rounds up.

    With no running replica it is one replica for a waiting request, else no change (Ray Serve's
    `replica_queue_length_autoscaling_policy`).
    """
    if total is None or not target_ongoing:
        return None
    if running == 0:
        return max(1, target) if total > 0 else target
    return total / target_ongoing


def engine_metrics(merged: MetricsPage, replica: str) -> dict[str, Any]:
    """Return the engine's fields of a `ReplicaSample`.

    Over several engines of one replica they are sums, and the mean for the use of the KV cache.
    """
    metrics: dict[str, Any] = {}
    for metric, name in (ENGINE_METRICS | TRANSFER_METRICS).items():
        values = [value for _, value in merged.rows(metric, ReplicaId=replica)]
        if values and name == "kv_cache_usage":
            metrics[name] = sum(values) / len(values)
        elif values:
            metrics[name] = sum(values) if name.endswith("_s") else round(sum(values))
    return metrics


def proxies(
    now_s: float, details: Mapping[str, Any], pages: Pages, application: str
) -> Iterator[ProxySample]:
    """Yield a sample of the proxy of each node that has one and answered."""
    for node in details:
        if node in pages:
            page = pages[node]
            refused = [
                page.total(HTTP_REQUESTS, application=application, status_code=status)
                for status in SHED_STATUSES
            ]
            answered = page.total(HTTP_REQUESTS, application=application)
            shed = total_of(refused) if answered is None else total_of([*refused, 0.0])
            in_flight = page.total(IN_FLIGHT)
            yield ProxySample(
                time_s=now_s, node=node, in_flight=_count(in_flight), shed=_count(shed)
            )


def gpus(now_s: float, pages: Pages) -> Iterator[GpuSample]:
    """Yield a sample of each GPU of each node that answered."""
    for node, page in pages.items():
        by_index: dict[int, dict[str, float]] = {}
        for metric, name in GPU_METRICS.items():
            for labels, value in page.rows(metric):
                gpu = by_index.setdefault(int(labels["GpuIndex"]), {})
                gpu[name] = value / _GPU_UNITS[name]
        for index, values in sorted(by_index.items()):
            yield GpuSample(time_s=now_s, node=node, gpu=index, **values)


def _count(value: float | None) -> int | None:
    return None if value is None else round(value)
