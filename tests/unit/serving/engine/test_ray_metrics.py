"""The metrics in Ray. The reference is vLLM's own logger for Ray, given the same statistics."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from ray.util import metrics as ray_metrics
from support.engine_statistics import engine_config, step
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

from serving.engine.ray_metrics import RayMetrics

Series = tuple[str, frozenset[tuple[str, str]]]


class Recorded:
    """The values that a process has reported to Ray, by the name and the tags of each metric."""

    def __init__(self) -> None:
        self.gauges: dict[Series, float] = {}
        self.counters: dict[Series, float] = defaultdict(float)
        self.observations: dict[Series, list[float]] = defaultdict(list)
        self.boundaries: dict[str, list[float]] = {}
        self.calls = 0

    def record(self, metric: Any, value: float, tags: dict[str, str]) -> None:
        self.calls += 1
        series = (metric.info["name"], frozenset(tags.items()))
        if isinstance(metric, ray_metrics.Counter):
            self.counters[series] += value
        elif isinstance(metric, ray_metrics.Histogram):
            self.observations[series].append(value)
            self.boundaries[series[0]] = metric.boundaries
        else:
            self.gauges[series] = value

    def histogram_gauges(self) -> dict[Series, float]:
        """The observations as Prometheus represents them: cumulative buckets, sum and count."""
        gauges: dict[Series, float] = {}
        for (name, tags), values in self.observations.items():
            gauges[f"{name}_count", tags] = len(values)
            gauges[f"{name}_sum", tags] = sum(values)
            for bound in [*self.boundaries[name], float("inf")]:
                label = prometheus_client.utils.floatToGoString(bound)
                below = sum(value <= bound for value in values)
                gauges[f"{name}_bucket", tags | {("le", label)}] = below
        return gauges


@contextmanager
def recording() -> Iterator[Recorded]:
    recorded = Recorded()
    with patch.object(ray_metrics.Metric, "_record", recorded_by(recorded)):
        yield recorded


def recorded_by(recorded: Recorded) -> Any:
    def record(self: Any, value: float, tags: dict[str, str]) -> None:
        recorded.record(self, value, tags)

    return record


def test_ray_gets_the_same_values_as_from_the_logger_of_vllm() -> None:
    config, source = engine_config(), random.Random(1)
    steps = [step(source) for _ in range(200)]
    with recording() as expected:
        theirs = RayPrometheusStatLogger(config, [0])
        for statistics in steps:
            theirs.record(*statistics)
    with recording() as published:
        ours = PrometheusStatLogger(config, [0])
        metrics = RayMetrics(prometheus_client.REGISTRY, "")
        for number, statistics in enumerate(steps):
            ours.record(*statistics)
            if number % 50 == 49:
                metrics.publish()
    assert published.counters.keys() == expected.counters.keys()
    assert dict(published.counters) == pytest.approx(dict(expected.counters))
    assert not published.observations
    wanted = expected.gauges | expected.histogram_gauges()
    state = {key for key in published.gauges if key[0] == "vllm_engine_sleep_state"}
    assert published.gauges.keys() - state == wanted.keys() - state
    assert {k: published.gauges[k] for k in wanted} == pytest.approx(wanted)
    assert len(wanted) > 150, "histograms are included"
    assert published.calls < expected.calls / 4


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_a_counter_is_increased_by_what_was_added(registry: CollectorRegistry) -> None:
    counter = Counter("vllm:prompt_tokens", "Tokens.", ["engine"], registry=registry)
    metrics = RayMetrics(registry, "r1")
    series = ("vllm_prompt_tokens", frozenset({("engine", "0"), ("ReplicaId", "r1")}))
    with recording() as recorded:
        for added in (3, 0, 4):
            counter.labels("0").inc(added)
            metrics.publish()
    assert recorded.counters == {series: 7}
    assert recorded.calls == 2, "nothing is added to a counter that did not change"


def test_a_gauge_that_does_not_change_is_published_each_time(registry: CollectorRegistry) -> None:
    Gauge("vllm:num_requests_running", "Requests.", registry=registry).set(2)
    metrics = RayMetrics(registry, "r1")
    with recording() as recorded:
        metrics.publish()
        metrics.publish()
    assert recorded.gauges == {("vllm_num_requests_running", frozenset({("ReplicaId", "r1")})): 2}
    assert recorded.calls == 2


def test_a_histogram_without_observations_is_not_published(registry: CollectorRegistry) -> None:
    histogram = Histogram("vllm:queue", "Seconds.", ["engine"], registry=registry, buckets=[1, 2])
    histogram.labels("0")
    histogram.labels("1").observe(0)
    with recording() as recorded:
        RayMetrics(registry, "r1").publish()
    engines = {dict(tags)["engine"] for _, tags in recorded.gauges}
    assert engines == {"1"}
    values = {(name, dict(tags).get("le")): v for (name, tags), v in recorded.gauges.items()}
    assert values == {
        ("vllm_queue_bucket", "1.0"): 1,
        ("vllm_queue_bucket", "2.0"): 1,
        ("vllm_queue_bucket", "+Inf"): 1,
        ("vllm_queue_count", None): 1,
        ("vllm_queue_sum", None): 0,
    }


def test_only_the_adapters_in_use_now_are_published(registry: CollectorRegistry) -> None:
    gauge = Gauge("vllm:lora_requests_info", "Adapters.", ["running"], registry=registry)
    gauge.labels("a").set(100)
    gauge.labels("a,b").set(300)
    gauge.labels("b").set(200)
    with recording() as recorded:
        RayMetrics(registry, "r1").publish()
    (tags,) = (dict(tags) for _, tags in recorded.gauges)
    assert tags["running"] == "a,b"


def test_the_metrics_of_others_are_left_alone(registry: CollectorRegistry) -> None:
    Gauge("python_info", "Other.", registry=registry).set(1)
    with recording() as recorded:
        RayMetrics(registry, "r1").publish()
    assert recorded.calls == 0
