"""Samples from `/metrics` and Serve's details of a real engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import workbench as wb
from workbench.endpoints.deployed import Endpoint
from workbench.records import DeploymentSample, ProxySample, ReplicaSample, Sample
from workbench.telemetry import sampler
from workbench.telemetry.builder import desired_by_requests
from workbench.telemetry.sampler import Telemetry
from workbench.telemetry.scrape import Scraper

pytestmark = pytest.mark.engine


def ask(endpoint: Endpoint, count: int) -> None:
    text = "The paged cache holds keys and values of every token. " * 20
    for _ in range(count):
        endpoint.client.completions.create(
            model=endpoint.model_id, prompt=text, max_tokens=16, extra_body={"ignore_eos": True}
        )


def wait_until(condition: Callable[[], bool], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.2)


def test_samples_of_a_real_engine(endpoint: Endpoint) -> None:
    samples: list[Sample] = []
    clock = wb.client.start_clock()
    with Telemetry(endpoint, clock, samples.append):
        ask(endpoint, 4)
        answered_s = clock()
        # The counts come with the metrics, once a second or later on a busy machine.
        wait_until(lambda: is_counted(samples, answered_s))
        samples = list(samples)
    own = [s for s in samples if isinstance(s, DeploymentSample) and "router" not in s.deployment]
    last = own[-1]
    assert (last.target, last.running) == (1, 1)
    assert last.desired is not None
    assert last.total_requests is not None
    assert last.queued_requests == 0
    assert last.shed is not None
    engines = [s for s in samples if isinstance(s, ReplicaSample)]
    last_engine = engines[-1]
    assert last_engine.state == "running"
    assert (
        last_engine.running_requests,
        last_engine.waiting_requests,
        last_engine.kv_cache_usage,
    ) == (0, 0, 0.0)
    for name in ("prompt_tokens", "output_tokens", "prefix_queries", "prefix_hits"):
        assert getattr(last_engine, name) > 0, name
    proxies = [s for s in samples if isinstance(s, ProxySample)]
    assert proxies[-1].in_flight is not None
    assert proxies[-1].shed is not None
    assert {s.node for s in proxies} == {s.node for s in engines}
    assert max(s.time_s for s in samples) > answered_s + 3


def is_counted(samples: list[Sample], answered_s: float) -> bool:
    """Whether the last samples are of an idle engine, and no metric is missing in them."""
    last: dict[type[Sample], Any] = {
        type(s): s for s in samples if "router" not in getattr(s, "deployment", "")
    }
    if not {DeploymentSample, ReplicaSample, ProxySample} <= last.keys():
        return False
    deployment, engine = last[DeploymentSample], last[ReplicaSample]
    proxy = last[ProxySample]
    figures = [deployment.desired, deployment.total_requests, deployment.shed]
    idle = [deployment.queued_requests, engine.running_requests, engine.waiting_requests]
    return (
        min(sample.time_s for sample in (deployment, engine, proxy)) > answered_s + 3
        and None not in [*figures, proxy.in_flight, proxy.shed]
        and [*idle, engine.kv_cache_usage] == [0, 0, 0, 0]
        and bool(engine.prefix_hits)
    )


@pytest.mark.usefixtures("deployed")  # Ray Serve must not be imported before.
@pytest.mark.parametrize(
    ("total", "running", "target"),
    [(0.0, 0, 0), (3.0, 0, 0), (3.0, 0, 1), (0.0, 0, 1), (9.0, 2, 2), (0.0, 2, 2), (1.0, 1, 2)],
)
def test_desired_equals_serves_own_policy(total: float, running: int, target: int) -> None:
    from ray.serve.autoscaling_policy import default_autoscaling_policy
    from ray.serve.config import AutoscalingConfig, AutoscalingContext

    fields: dict[str, Any] = dict.fromkeys(AutoscalingContext.__init__.__annotations__)
    fields |= {"current_num_replicas": running, "target_num_replicas": target}
    fields |= {"total_num_requests": total, "policy_state": {}, "total_queued_requests": 0.0}
    fields["config"] = AutoscalingConfig(target_ongoing_requests=4)
    fields.pop("return", None)
    expected, _ = default_autoscaling_policy(AutoscalingContext(**fields))
    assert desired_by_requests(total, 4.0, running, target) == pytest.approx(expected)


def test_unreachable_metrics_are_reported_once(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "Scraper", partial(Scraper, timeout_s=1e-6))
    lines: list[str] = []
    samples: list[Sample] = []
    with Telemetry(endpoint, wb.client.start_clock(), samples.append, 0.2, notify=lines.append):
        wait_until(lambda: len({sample.time_s for sample in list(samples)}) > 4)
    assert len(lines) == 1
    assert "metrics can be reached" in lines[0]
    assert "/metrics: " in lines[0]
    assert {type(sample) for sample in samples} == {DeploymentSample}


def test_error_of_the_sink_is_raised(endpoint: Endpoint) -> None:
    called = threading.Event()

    def full(sample: Sample) -> None:
        called.set()
        raise OSError("no space left on device")

    with (
        pytest.raises(OSError, match="no space left"),
        Telemetry(endpoint, wb.client.start_clock(), full, 0.1),
    ):
        assert called.wait(60)
