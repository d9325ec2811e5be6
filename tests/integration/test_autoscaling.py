"""Autoscaling of a real engine: policies, decisions, reactions, and no failed request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from serving.compat.vllm import ENGINE_METRICS
from serving.spec.scaling import EnginePressure, TTFTTarget
from workbench.analysis.reactions import reactions
from workbench.clock import Clock
from workbench.endpoints.deployed import Endpoint, deploy
from workbench.loadgen.handle import LoadRun
from workbench.records import DecisionSample, DeploymentSample, ReplicaSample, Sample
from workbench.runs.run import Run
from workbench.telemetry.sampler import Telemetry

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]
FAST_SCALING: dict[str, Any] = {
    "upscale_delay_s": 1,
    "downscale_delay_s": 10,  # A pause of the machine is no lull of the load.
    "look_back_period_s": 2,
    "metrics_interval_s": 1,
    "max_replicas": 2,
}
TIMEOUT_S = 400


def small_service(name: str, **scaling: Any) -> wb.ServiceSpec:
    """A service with about ten blocks of KV cache, so that eight requests make it preempt.

    Its steps take 40 ms, so that the load leaves the processor to the replica that starts.
    """
    model = wb.ModelSpec(
        id=name,
        dtype="bfloat16",
        max_model_len=512,
        kv_cache_gib=0.0025,
        scaling=wb.ScalingSpec(**FAST_SCALING, **scaling),
    )
    model = wb.experiments.paced(model, min_step_ms=40)
    return wb.ServiceSpec(name=name, route_prefix=f"/{name}", port=0, model=model)


async def wait_until(condition: Callable[[], bool], load: LoadRun | None = None) -> None:
    """Wait until the condition holds; fail if the load ends before."""
    for _ in range(2 * TIMEOUT_S):
        if condition():
            return
        assert load is None or not load._task.done(), "the load ended before"
        await asyncio.sleep(0.5)
    raise AssertionError(f"not reached within {TIMEOUT_S} s")


def start_load(endpoint: Endpoint, run: Run, clock: Clock, concurrency: int) -> LoadRun:
    """Start a closed loop that runs until it is stopped."""
    load = wb.LoadSpec(
        arrivals=wb.ClosedLoop(max_concurrency=concurrency),
        count=3_000,
        prompts=wb.RandomPrompts(input=64, output=150),
        timeout_s=TIMEOUT_S,
    )
    return wb.start_load(endpoint, load, run=run, clock=clock, progress=None)


def of_deployment(samples: list[Sample], kind: type[Any], deployment: str) -> list[Any]:
    return [s for s in samples if isinstance(s, kind) and s.deployment == deployment]


def test_zero_to_two_to_zero_without_a_failed_request(endpoint: Endpoint, tmp_path: Path) -> None:
    spec = small_service(
        "sleeper",
        min_replicas=0,
        downscale_to_zero_delay_s=15,  # The telemetry sees the one replica before it stops.
        max_ongoing_requests=8,
        target_ongoing_requests=4,
        policy=EnginePressure(kv_cache_usage=0.5, waiting_requests=2),
    )
    run = Run.create(tmp_path, {}, run_id="r")
    lines: list[str] = []
    samples: list[Sample] = []
    clock = wb.client.start_clock()

    def keep(sample: Sample) -> None:
        samples.append(sample)
        run.append_telemetry(sample)

    async def drive(sleeper: Endpoint) -> float:
        def running() -> int:
            return sleeper.status().deployments["sleeper"].running

        def no_replica() -> bool:
            now = sleeper.status().deployments["sleeper"]
            return now.target + now.running + now.starting + now.stopping == 0

        def seen(kind: type[Any]) -> list[Any]:
            return of_deployment(samples, kind, "sleeper")

        def both_have_served() -> bool:
            return len({s.replica for s in seen(ReplicaSample) if s.has_served}) == 2

        def seen_empty() -> bool:
            last = seen(DeploymentSample)[-1]
            counts = (last.target, last.running, last.starting, last.stopping)
            return not any(counts)

        await wait_until(lambda: len(seen(DeploymentSample)) > 2)
        began_s = clock()
        load = start_load(sleeper, run, clock, concurrency=16)
        await wait_until(lambda: running() == 2, load)
        await asyncio.sleep(10)  # Both replicas serve.
        await wait_until(both_have_served, load)
        load.stop()
        await load
        await wait_until(no_replica)
        await wait_until(seen_empty)
        await asyncio.sleep(3)
        return began_s

    sleeper = deploy(spec, progress=lines.append)
    with Telemetry(sleeper, clock, keep, notify=lines.append) as watch:
        began_s = asyncio.run(drive(sleeper))
        sleeper.delete()
        asyncio.run(wait_until(lambda: watch.ended_reason is not None))
    assert sum("telemetry ends" in line for line in lines) == 1
    records = list(run.records())
    # Stopping the load cancels the requests in progress; no other request may fail.
    assert {record.status for record in records} <= {"ok", "cancelled"}
    assert sum(record.status == "ok" for record in records) > 5
    frame = run.samples_frame()
    targets = frame[frame.deployment == "sleeper"].target.dropna().astype(int).tolist()
    assert [target for i, target in enumerate(targets) if targets[i - 1 : i] != [target]] == [
        0,
        1,
        2,
        1,
        0,
    ]
    _check_engine_samples(of_deployment(samples, ReplicaSample, "sleeper"))
    firsts = [r.first_token_s for r in records if r.first_token_s is not None]
    _check_decisions_and_reactions(samples, began_s, firsts)


def _check_engine_samples(engines: list[ReplicaSample]) -> None:
    assert len({sample.replica for sample in engines}) == 2
    assert {"starting", "running", "stopping"} <= {sample.state for sample in engines}
    # Random prompts share no prefix, so there are no hits in the prefix cache.
    for name in set(ENGINE_METRICS.values()) - {"prefix_hits"}:
        assert max(getattr(sample, name) or 0 for sample in engines) > 0, name
    assert max(sample.kv_cache_usage or 0 for sample in engines) <= 1


def _check_decisions_and_reactions(
    samples: list[Sample], began_s: float, first_tokens_s: list[float]
) -> None:
    decisions: list[DecisionSample] = of_deployment(samples, DecisionSample, "sleeper")
    assert [(d.from_target, d.to_target) for d in decisions] == [(0, 1), (1, 2), (2, 1), (1, 0)]
    wake, up, down, sleep = decisions
    assert wake.held_by is None
    assert "upscale_delay_s" in str(up.held_by)
    assert "downscale_delay_s" in str(down.held_by)
    assert "downscale_to_zero_delay_s" in str(sleep.held_by)
    assert up.saw is not None
    assert up.saw["kv_cache_usage"] > 0.5 or up.saw["waiting_requests"] > 2
    measured = reactions(
        of_deployment(samples, DeploymentSample, "sleeper"),
        decisions,
        load_changes_s=[began_s],
        replicas=of_deployment(samples, ReplicaSample, "sleeper"),
        first_tokens_s=first_tokens_s,
    )
    cold = measured[0]
    assert cold.cold_start_s is not None
    assert cold.cold_start_s == pytest.approx(min(first_tokens_s) - began_s, abs=3)
    for reaction in measured:
        times = [time_s for _, time_s in reaction.marks()]
        assert times == sorted(times), reaction.marks()
    names = [[name for name, _ in reaction.marks()] for reaction in measured]
    assert names[0] == names[1]
    assert names[0][-1] == "first token served"
    assert [marks[-1] for marks in names[2:]] == ["replicas stopped"] * 2


def test_a_ttft_target_starts_a_second_replica(endpoint: Endpoint, tmp_path: Path) -> None:
    spec = small_service(
        "prompt",
        max_ongoing_requests=4,
        max_queued_requests=64,
        target_ongoing_requests=4,
        policy=TTFTTarget(ttft_ms=200),
    )
    run = Run.create(tmp_path, {}, run_id="r")
    samples: list[Sample] = []
    clock = wb.client.start_clock()

    def slowest_s() -> float:
        """The slowest TTFT by the client: with four slots for twelve requests, one waits twice."""
        answered = [r for r in run.records() if r.status == "ok"]
        return max(((r.first_token_s or 0) - (r.sent_s or 0) for r in answered), default=0)

    async def drive(prompt: Endpoint) -> None:
        load = start_load(prompt, run, clock, concurrency=12)
        await wait_until(lambda: prompt.status().deployments["prompt"].target == 2, load)
        await wait_until(lambda: bool(of_deployment(samples, DecisionSample, "prompt")), load)
        await wait_until(lambda: slowest_s() > 0.2, load)
        load.stop()
        await load

    with deploy(spec) as prompt, Telemetry(prompt, clock, samples.append):
        asyncio.run(drive(prompt))
    decisions = of_deployment(samples, DecisionSample, "prompt")
    assert [(d.from_target, d.to_target) for d in decisions[:1]] == [(1, 2)]
    assert decisions[0].saw["ttft_ms"] > 200
    assert decisions[0].desired == 2
    assert "upscale_delay_s" in decisions[0].held_by
