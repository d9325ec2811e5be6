"""Serve's account of an application and its nodes' metrics, made into samples; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.records import (
    DecisionSample,
    DeploymentSample,
    GpuSample,
    ProxySample,
    ReplicaSample,
    Sample,
)
from workbench.telemetry.decisions import DecisionLog, ScalingLimits
from workbench.telemetry.scrape import (
    ENGINE_METRICS,
    GATE_QUEUED,
    GATE_SHED,
    GPU_METRICS,
    HANDLE_QUEUE,
    HTTP_REQUESTS,
    IN_FLIGHT,
    POLICY_DESIRED,
    POLICY_LED,
    POLICY_SAW,
    TARGET_ONGOING,
    TOTAL_REQUESTS,
    MetricsPage,
    add,
    merged,
)

SHED_STATUSES = ("429", "503")
_GPU_UNITS = {"utilization": 100.0, "memory_gib": 1024.0, "power_w": 1000.0}
Nodes = Mapping[str, MetricsPage]


@dataclass
class SampleBuilder:
    """Makes the samples of one application, moment by moment.

    It remembers what a moment alone does not tell: the last target of each deployment, and what
    replicas that are gone had refused. `engines` are the deployments that run an engine.
    """

    application: str
    engines: frozenset[str]
    _logs: dict[str, DecisionLog] = field(default_factory=dict)
    _shed: dict[str, dict[str, int]] = field(default_factory=dict)

    def samples(self, now_s: float, details: Mapping[str, Any], nodes: Nodes) -> list[Sample]:
        """All of this moment, from Serve's details and the nodes that answered, by node id."""
        found: list[Sample] = []
        everything = merged(nodes.values())
        for name, told in details["applications"][self.application]["deployments"].items():
            replicas = list(self._replicas(now_s, name, told, nodes, everything))
            sample = self._deployment(now_s, name, told, nodes, everything, replicas)
            found += [sample, *replicas, *self._decisions(sample, told, everything)]
        found += proxies(now_s, details.get("proxies", {}), nodes, self.application)
        return found + list(gpus(now_s, nodes))

    def _deployment(
        self,
        now_s: float,
        name: str,
        told: Mapping[str, Any],
        nodes: Nodes,
        everything: MetricsPage,
        replicas: list[ReplicaSample],
    ) -> DeploymentSample:
        states = [word(one["state"]) for one in told["replicas"]]
        counts = {state: states.count(state) for state in ("running", "starting", "stopping")}
        labels = {"deployment": name, "application": self.application}
        hidden = any(one["node_id"] not in nodes for one in told["replicas"] if one.get("node_id"))
        waiting = [
            everything.total(HANDLE_QUEUE, **labels),
            everything.total(GATE_QUEUED, **labels),
            *(one.waiting_requests for one in replicas),
        ]
        target = int(told["target_num_replicas"])
        return DeploymentSample(
            time_s=now_s,
            deployment=name,
            target=target,
            **counts,
            desired=self._desired(name, told, everything, counts["running"], target),
            total_requests=everything.total(TOTAL_REQUESTS, **labels),
            queued_requests=None if hidden else add(waiting),
            shed=self._refused(name, everything),
        )

    def _desired(
        self,
        name: str,
        told: Mapping[str, Any],
        everything: MetricsPage,
        running: int,
        target: int,
    ) -> int | None:
        """What the policy asks for: told by ours, worked out for Serve's own.

        Serve's gauge of this name has the policy's result after the delays.
        """
        labels = {"deployment": name, "application": self.application}
        # A sleeping deployment is woken by Serve's own rule, without asking the policy.
        if running and _is_ours(told):
            asked = everything.total(POLICY_DESIRED, **labels)
        else:
            total = everything.total(TOTAL_REQUESTS, **labels)
            asked = desired_by_requests(
                total, everything.total(TARGET_ONGOING, **labels), running, target
            )
        return None if asked is None else math.ceil(asked - 1e-9)

    def _refused(self, name: str, everything: MetricsPage) -> int | None:
        seen = self._shed.setdefault(name, {})
        labels = {"deployment": name, "application": self.application}
        for own, value in everything.rows(GATE_SHED, **labels):
            seen[own.get("replica", "")] = int(value)
        return sum(seen.values()) if seen else None

    def _replicas(
        self,
        now_s: float,
        name: str,
        told: Mapping[str, Any],
        nodes: Nodes,
        everything: MetricsPage,
    ) -> Iterator[ReplicaSample]:
        if name not in self.engines:
            return
        for one in told["replicas"]:
            if one.get("node_id") in nodes:
                yield ReplicaSample(
                    time_s=now_s,
                    deployment=name,
                    replica=one["replica_id"],
                    node=one["node_id"],
                    state=word(one["state"]),
                    **engine_figures(everything, one["replica_id"]),
                )

    def _decisions(
        self, sample: DeploymentSample, told: Mapping[str, Any], everything: MetricsPage
    ) -> list[DecisionSample]:
        limits = ScalingLimits.read(told["deployment_config"].get("autoscaling_config"))
        labels = {"deployment": sample.deployment, "application": self.application}
        saw, led = (
            {own["figure"]: value for own, value in everything.rows(metric, **labels)}
            for metric in (POLICY_SAW, POLICY_LED)
        )
        log = self._logs.setdefault(sample.deployment, DecisionLog())
        return log.see(sample, limits, saw, led if _is_ours(told) else None)

    def rest(self) -> list[DecisionSample]:
        """The decisions that still wait for their policy's figures; none will come."""
        return [one for log in self._logs.values() for one in log.close()]


def _is_ours(told: Mapping[str, Any]) -> bool:
    """Whether the policy is of `serving.deploy.autoscaling`, and tells what it goes by."""
    config = told["deployment_config"].get("autoscaling_config") or {}
    policy = (config.get("policy") or {}).get("policy_function", "")
    return str(policy).startswith("serving.")


def desired_by_requests(
    total: float | None, target_ongoing: float | None, running: int, target: int
) -> float | None:
    """What Serve's own policy asks for: `total` over `target_ongoing`, rounded up by Serve.

    With none running, one replica for whoever waits, and otherwise no change (Ray Serve's
    `replica_queue_length_autoscaling_policy`).
    """
    if total is None or not target_ongoing:
        return None
    if running == 0:
        return max(1, target) if total > 0 else target
    return total / target_ongoing


def engine_figures(everything: MetricsPage, replica: str) -> dict[str, Any]:
    """The engine's fields of a `ReplicaSample`; over several engines of one replica, their sum,
    and the mean share of KV cache.
    """
    found: dict[str, Any] = {}
    for metric, name in ENGINE_METRICS.items():
        values = [value for _, value in everything.rows(metric, ReplicaId=replica)]
        if values and name == "kv_cache_usage":
            found[name] = sum(values) / len(values)
        elif values:
            found[name] = round(sum(values))
    return found


def proxies(
    now_s: float, told: Mapping[str, Any], nodes: Nodes, application: str
) -> Iterable[ProxySample]:
    """The proxy of each node that has one and answered."""
    for node in told:
        if node in nodes:
            refused = [
                nodes[node].total(HTTP_REQUESTS, application=application, status_code=status)
                for status in SHED_STATUSES
            ]
            answered = nodes[node].total(HTTP_REQUESTS, application=application)
            shed = add(refused) if answered is None else add([*refused, 0.0])
            in_flight = nodes[node].total(IN_FLIGHT)
            yield ProxySample(time_s=now_s, node=node, in_flight=whole(in_flight), shed=whole(shed))


def gpus(now_s: float, nodes: Nodes) -> Iterable[GpuSample]:
    """Each card of each node that answered, by Ray's account."""
    for node, told in nodes.items():
        cards: dict[int, dict[str, float]] = {}
        for metric, name in GPU_METRICS.items():
            for own, value in told.rows(metric):
                card = cards.setdefault(int(own["GpuIndex"]), {})
                card[name] = value / _GPU_UNITS[name]
        for index, figures in sorted(cards.items()):
            yield GpuSample(time_s=now_s, node=node, gpu=index, **figures)


def whole(value: float | None) -> int | None:
    """A count that came as a float."""
    return None if value is None else round(value)


def word(state: Any) -> str:
    """Serve's states are enumerations in one version and strings in another."""
    return str(getattr(state, "value", state)).lower()
