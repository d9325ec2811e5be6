"""Replicas come and go on a real engine: policies, decisions, reactions, and no failed request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from serving.spec.scaling import EnginePressure, TTFTTarget
from workbench.analysis.reactions import reactions
from workbench.clock import Clock
from workbench.endpoints.deployed import Endpoint, deploy
from workbench.loadgen.handle import LoadRun
from workbench.records import DecisionSample, DeploymentSample, ReplicaSample, Sample
from workbench.runs.run import Run
from workbench.telemetry.sampler import Telemetry
from workbench.telemetry.scrape import ENGINE_METRICS

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]
QUICK: dict[str, Any] = {
    "upscale_delay_s": 1,
    "downscale_delay_s": 3,
    "look_back_period_s": 2,
    "metrics_interval_s": 1,
    "max_replicas": 2,
}
PATIENCE_S = 400


def small(name: str, **scaling: Any) -> wb.ServiceSpec:
    """A KV cache of some ten blocks: eight requests fill it, and the engine must preempt."""
    model = wb.ModelSpec(
        id=name,
        dtype="bfloat16",
        max_model_len=512,
        kv_cache_gib=0.0025,
        scaling=wb.ScalingSpec(**QUICK, **scaling),
    )
    return wb.ServiceSpec(name=name, route_prefix=f"/{name}", port=0, model=model)


async def until(holds: Callable[[], bool], loading: LoadRun | None = None) -> None:
    for _ in range(2 * PATIENCE_S):
        if holds():
            return
        assert loading is None or not loading._task.done(), "the load ended before it happened"  # type: ignore[union-attr]
        await asyncio.sleep(0.5)
    raise AssertionError("waited too long")


def loaded(endpoint: Endpoint, run: Run, clock: Clock, at_once: int) -> LoadRun:
    """A closed loop that goes on until it is stopped."""
    load = wb.LoadSpec(
        arrivals=wb.ClosedLoop(max_concurrency=at_once),
        count=3_000,
        prompts=wb.RandomPrompts(input=64, output=150),
        timeout_s=PATIENCE_S,
    )
    return wb.start_load(endpoint, load, run=run, clock=clock, progress=None)


def of(samples: list[Sample], kind: type[Any], deployment: str) -> list[Any]:
    return [s for s in samples if isinstance(s, kind) and s.deployment == deployment]


def test_zero_to_two_to_zero_without_a_failed_request(endpoint: Endpoint, tmp_path: Path) -> None:
    spec = small(
        "sleeper",
        min_replicas=0,
        downscale_to_zero_delay_s=3,
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

        def nothing_left() -> bool:
            now = sleeper.status().deployments["sleeper"]
            return now.target + now.running + now.starting + now.stopping == 0

        await asyncio.sleep(3)
        began_s = clock()
        load = loaded(sleeper, run, clock, at_once=16)
        await until(lambda: running() == 2, load)
        await asyncio.sleep(10)  # both serve
        load.stop()
        await load
        await until(nothing_left)
        await asyncio.sleep(3)
        return began_s

    sleeper = deploy(spec, progress=lines.append)
    with Telemetry(sleeper, clock, keep, say=lines.append) as watch:
        began_s = asyncio.run(drive(sleeper))
        sleeper.delete()
        asyncio.run(until(lambda: watch.gone is not None))
    assert sum("telemetry ends" in line for line in lines) == 1
    records = list(run.records())
    # Stopping the load cuts what is in progress; nothing else may end badly.
    assert {record.status for record in records} <= {"ok", "cancelled"}
    assert sum(record.status == "ok" for record in records) > 20
    frame = run.telemetry()
    targets = frame[frame.deployment == "sleeper"].target.dropna().astype(int).tolist()
    assert [one for i, one in enumerate(targets) if targets[i - 1 : i] != [one]] == [0, 1, 2, 1, 0]
    _engines_told_everything(of(samples, ReplicaSample, "sleeper"))
    firsts = [r.first_token_s for r in records if r.first_token_s is not None]
    _decisions_and_reactions(samples, began_s, firsts)


def _engines_told_everything(told: list[ReplicaSample]) -> None:
    assert len({one.replica for one in told}) == 2
    assert {"starting", "running", "stopping"} <= {one.state for one in told}
    # Random prompts share no prefix, so nothing is ever found in the prefix cache.
    for name in set(ENGINE_METRICS.values()) - {"prefix_hits"}:
        assert max(getattr(one, name) or 0 for one in told) > 0, name
    assert max(one.kv_cache_usage or 0 for one in told) <= 1


def _decisions_and_reactions(
    samples: list[Sample], began_s: float, first_tokens_s: list[float]
) -> None:
    made: list[DecisionSample] = of(samples, DecisionSample, "sleeper")
    assert [(one.from_target, one.to_target) for one in made] == [(0, 1), (1, 2), (2, 1), (1, 0)]
    wake, up, down, sleep = made
    assert wake.held_by is None
    assert "upscale_delay_s" in str(up.held_by)
    assert "downscale_delay_s" in str(down.held_by)
    assert "downscale_to_zero_delay_s" in str(sleep.held_by)
    assert up.saw is not None
    assert up.saw["kv_cache_usage"] > 0.5 or up.saw["waiting_requests"] > 2
    found = reactions(
        of(samples, DeploymentSample, "sleeper"),
        made,
        load_changes_s=[began_s],
        replicas=of(samples, ReplicaSample, "sleeper"),
        first_tokens_s=first_tokens_s,
    )
    cold = found[0]
    assert cold.cold_start_s is not None
    assert cold.cold_start_s == pytest.approx(min(first_tokens_s) - began_s, abs=3)
    for one in found:
        times = [at for _, at in one.marks()]
        assert times == sorted(times), one.marks()
    names = [[name for name, _ in one.marks()] for one in found]
    assert names[0] == names[1]
    assert names[0][-1] == "first token served"
    assert [marks[-1] for marks in names[2:]] == ["replicas stopped"] * 2


def test_a_ttft_target_starts_a_second_replica(endpoint: Endpoint, tmp_path: Path) -> None:
    spec = small(
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
        """Another witness: with four slots and twelve at once, a request waits for two."""
        answered = [r for r in run.records() if r.status == "ok"]
        return max(((r.first_token_s or 0) - (r.sent_s or 0) for r in answered), default=0)

    async def drive(prompt: Endpoint) -> None:
        load = loaded(prompt, run, clock, at_once=12)
        await until(lambda: prompt.status().deployments["prompt"].target == 2, load)
        await until(lambda: slowest_s() > 0.2, load)
        load.stop()
        await load

    with deploy(spec) as prompt, Telemetry(prompt, clock, samples.append):
        asyncio.run(drive(prompt))
    made = of(samples, DecisionSample, "prompt")
    assert [(one.from_target, one.to_target) for one in made[:1]] == [(1, 2)]
    assert made[0].saw["ttft_ms"] > 200
    assert made[0].desired == 2
    assert "upscale_delay_s" in made[0].held_by
