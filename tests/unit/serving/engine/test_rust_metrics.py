"""The metrics of two clients. The reference is a registry in which one counted everything."""

from __future__ import annotations

import re
from typing import Any

import prometheus_client as prom
import pytest

from serving.engine.rust_metrics import SharedMetrics

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Client:
    """The metrics of a client, of each kind that vLLM has."""

    def __init__(self) -> None:
        self.registry = prom.CollectorRegistry()
        labels = ("model_name", "engine")
        own: dict[str, Any] = {"registry": self.registry}
        name, ended = "vllm:e2e_request_latency_seconds", (*labels, "finished_reason")
        self._tokens = prom.Counter("vllm:generation_tokens", "Tokens.", labels, **own)
        self._ended = prom.Counter("vllm:request_success", "Requests.", ended, **own)
        self._times = prom.Histogram(name, "Times.", labels, buckets=(0.5, 1, 2), **own)
        self._running = prom.Gauge("vllm:num_requests_running", "Running.", labels, **own)
        self._other = prom.Counter("http_requests", "Others.", **own)

    def count(self, seconds: float, reason: str, running: int = 0) -> None:
        labels = {"model_name": "m", "engine": "0"}
        self._tokens.labels(**labels).inc(seconds * 10)
        self._ended.labels(**labels, finished_reason=reason).inc()
        self._times.labels(**labels).observe(seconds)
        self._running.labels(**labels).set(running)
        self._other.inc()

    @property
    def page(self) -> str:
        """The metrics as the Rust front end writes them, with types as in OpenMetrics."""
        text = prom.generate_latest(self.registry).decode()
        return re.sub(r"^(# \w+ \S+)_total ", r"\1 ", text, flags=re.MULTILINE)


def samples(registry: object) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in registry.collect()  # type: ignore[attr-defined]
        for sample in family.samples
        if not sample.name.endswith("_created") and sample.name.startswith("vllm:")
    }


def test_counts_are_added_and_gauges_are_those_in_python() -> None:
    python, rust, together = Client(), Client(), Client()
    for seconds, reason in [(0.2, "stop"), (1.5, "length")]:
        python.count(seconds, reason, running=3)
        together.count(seconds, reason)
    for seconds, reason in [(0.7, "stop"), (0.1, "stop"), (9.0, "length")]:
        rust.count(seconds, reason, running=100)
        together.count(seconds, reason, running=3)
    metrics = SharedMetrics(python.registry)
    metrics.read(rust.page)
    assert samples(metrics) == pytest.approx(samples(together.registry))


def test_a_bound_of_a_bucket_may_be_written_as_a_whole_number() -> None:
    python, rust, together = Client(), Client(), Client()
    for client in (python, rust, together, together):
        client.count(0.7, "stop")
    metrics = SharedMetrics(python.registry)
    metrics.read(rust.page.replace('le="1.0"', 'le="1"'))
    assert samples(metrics) == pytest.approx(samples(together.registry))


def test_metrics_of_others_are_not_added() -> None:
    python, rust = Client(), Client()
    python.count(0.2, "stop")
    rust.count(0.2, "stop")
    metrics = SharedMetrics(python.registry)
    metrics.read(rust.page)
    (requests,) = [f for f in metrics.collect() if f.name == "http_requests"]
    assert [s.value for s in requests.samples if s.name == "http_requests_total"] == [1]


def test_before_the_first_page_the_metrics_are_those_in_python() -> None:
    python = Client()
    python.count(0.2, "stop")
    assert samples(SharedMetrics(python.registry)) == samples(python.registry)


def test_a_damaged_page_leaves_the_last_one() -> None:
    python, rust, together = Client(), Client(), Client()
    for client in (python, rust, together, together):
        client.count(0.7, "stop")
    metrics = SharedMetrics(python.registry)
    metrics.read(rust.page)
    with pytest.raises(ValueError, match="could not convert"):
        metrics.read("vllm:generation_tokens_total{} many\n")
    assert samples(metrics) == pytest.approx(samples(together.registry))


def test_the_metrics_can_be_read_as_a_page() -> None:
    python, rust = Client(), Client()
    python.count(0.2, "stop")
    rust.count(0.2, "stop")
    metrics = SharedMetrics(python.registry)
    metrics.read(rust.page)
    line = 'vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 2.0'
    assert line in prom.generate_latest(metrics).decode()
