"""The `/metrics` of engines of others, as their documentation and vLLM itself print them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from support import scripted_server as scripted
from support.scripted_server import tokens

from workbench.endpoints.remote import remote
from workbench.figures.cluster import cluster_timeline
from workbench.figures.cluster_frames import frames_of
from workbench.records import ReplicaSample, Sample
from workbench.runs.run import Run
from workbench.telemetry.engines import read_engine
from workbench.telemetry.sampler import Telemetry


def page(engine: str) -> bytes:
    """Return a page as an engine's own use of prometheus_client prints it."""
    registry = CollectorRegistry()

    def gauge(name: str, *values: float) -> None:
        metric = Gauge(name, "text", ["model_name", "engine"], registry=registry)
        for number, value in enumerate(values):
            metric.labels("m", str(number)).set(value)

    def counter(name: str, *values: float) -> None:
        metric = Counter(name, "text", ["model_name", "engine"], registry=registry)
        for number, value in enumerate(values):
            metric.labels("m", str(number)).inc(value)

    Gauge("process_open_fds", "text", registry=registry).set(9)
    if engine == "vllm":
        gauge("vllm:num_requests_running", 3, 5)
        gauge("vllm:num_requests_waiting", 1, 0)
        gauge("vllm:kv_cache_usage_perc", 0.25, 0.75)
        counter("vllm:prefix_cache_queries", 100, 300)
        counter("vllm:prefix_cache_hits", 40, 60)
        counter("vllm:generation_tokens", 1000, 500)
    elif engine == "sglang":
        gauge("sglang:num_running_reqs", 8)
        gauge("sglang:num_queue_reqs", 1)
        gauge("sglang:token_usage", 0.5)
        counter("sglang:prompt_tokens", 400)
        counter("sglang:cached_tokens", 100)
        counter("sglang:generation_tokens", 1500)
    elif engine == "tgi":
        Gauge("tgi_batch_current_size", "text", registry=registry).set(8)
        Gauge("tgi_queue_size", "text", registry=registry).set(1)
        lengths = Histogram("tgi_request_generated_tokens", "text", registry=registry)
        lengths.observe(1000)
        lengths.observe(500)
    return bytes(generate_latest(registry))


COMMON = {"running_requests": 8, "waiting_requests": 1, "output_tokens": 1500}
PREFIX = {"kv_cache_usage": 0.5, "prefix_queries": 400, "prefix_hits": 100}
EXPECTED: dict[str, dict[str, Any]] = {
    "vllm": COMMON | PREFIX,
    "sglang": COMMON | PREFIX | {"prompt_tokens": 400},
    "tgi": COMMON,
}


@pytest.mark.parametrize("engine", EXPECTED)
def test_metrics_of_each_engine(engine: str) -> None:
    assert read_engine(page(engine)) == (engine, EXPECTED[engine])


def test_another_server_has_none() -> None:
    assert read_engine(page("another")) is None
    assert read_engine(b"<html>not found</html>") is None


def test_metrics_are_on_the_runs_timeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A server without a first answer has no metrics, and this machine may be slow.
    monkeypatch.setattr("workbench.telemetry.remote.TIMEOUT_S", 60.0)
    run = Run.create(tmp_path, {})
    samples: list[Sample] = []
    lines: list[str] = []
    start = time.monotonic()

    def keep(sample: Sample) -> None:
        samples.append(sample)
        run.append_telemetry(sample)

    with scripted.threaded(tokens(1)) as server:
        server.metrics = page("vllm")
        endpoint = remote(server.base_url, model="m")
        with Telemetry(endpoint, lambda: time.monotonic() - start, keep, 0.05, notify=lines.append):
            while len(samples) < 3:
                time.sleep(0.01)
            server.metrics = None  # A gap does not end the sampling.
            time.sleep(0.1)
    assert lines == []
    assert all(isinstance(sample, ReplicaSample) for sample in samples)
    assert [sample.time_s for sample in samples] == sorted(sample.time_s for sample in samples)
    frame = run.samples_frame("replica")
    assert set(frame.deployment) == set(endpoint.deployments) == {f"127.0.0.1:{server.port}"}
    assert set(frame.running_requests) == {8}
    figure = cluster_timeline(frames_of(run, endpoint.deployments))
    assert any(8 in list(trace.y) for trace in figure.data if trace.y is not None)
