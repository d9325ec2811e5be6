"""Publishes the metrics that vLLM counts in this process as metrics of Ray.

vLLM's logger for Ray calls Ray for each observation, which is at least once per token. Its logger
for Prometheus only counts, and :class:`RayMetrics` publishes the counts once a second. Ray's own
histograms take single observations. So each bucket of a histogram is a gauge here, with the name
and the label ``le`` of Prometheus: ``histogram_quantile`` and ``rate`` work as usual.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from serving.compat.vllm import ADAPTERS_METRIC, METRIC_PREFIX

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.samples import Sample

    from serving.engine.rust_metrics import Registry

REPLICA_TAG = "ReplicaId"
"""The label with which vLLM's logger for Ray names the replica."""

_NOT_ALLOWED = re.compile(r"[^a-zA-Z0-9_]")
"""Characters that Ray does not allow in names, such as the colon of vLLM's names."""

_Key = tuple[str, tuple[tuple[str, str], ...]]


class RayMetrics:
    """Ray's copy of vLLM's metrics.

    Args:
        registry: Where vLLM registers its metrics.
        replica_id: Ray Serve's id of this replica.
    """

    def __init__(self, registry: Registry, replica_id: str) -> None:
        self._registry, self._replica_id = registry, replica_id
        self._metrics: dict[str, Any] = {}
        self._published: dict[_Key, float] = {}

    def publish(self) -> None:
        """Set Ray's gauges, and increase its counters, to the present values."""
        for family in self._registry.collect():
            if not family.name.startswith(METRIC_PREFIX):
                continue
            for sample in _used_samples(family):
                if family.type == "counter":
                    self._increase(family, sample)
                else:
                    gauge, tags = self._metric("Gauge", sample.name, family, sample)
                    gauge.set(sample.value, tags)

    def _increase(self, family: Metric, sample: Sample) -> None:
        key = (family.name, tuple(sample.labels.items()))
        added = sample.value - self._published.get(key, 0.0)
        if added > 0:
            counter, tags = self._metric("Counter", family.name, family, sample)
            counter.inc(added, tags)
            self._published[key] = sample.value

    def _metric(
        self, kind: str, name: str, family: Metric, sample: Sample
    ) -> tuple[Any, dict[str, str]]:
        """Return Ray's metric of a sample, which is created with the first one, and its tags."""
        tags = {**sample.labels, REPLICA_TAG: self._replica_id}
        metric = self._metrics.get(name)
        if metric is None:
            from ray.util import metrics

            ray_name = _NOT_ALLOWED.sub("_", name)
            metric = getattr(metrics, kind)(ray_name, family.documentation, tuple(tags))
            self._metrics[name] = metric
        return metric, tags


def _used_samples(family: Metric) -> Iterator[Sample]:
    """Yield the samples to publish: no times of creation, and no histogram without observations.

    A sample of ``ADAPTERS_METRIC`` names the adapters in use and has the time as its value, so only
    the newest one holds.
    """
    if family.name == ADAPTERS_METRIC:
        yield from sorted(family.samples, key=lambda sample: sample.value)[-1:]
        return
    samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
    if family.type != "histogram":
        yield from samples
        return
    counts = (sample for sample in samples if sample.name.endswith("_count") and sample.value)
    used = [sample.labels.items() for sample in counts]
    yield from (s for s in samples if any(labels <= s.labels.items() for labels in used))
