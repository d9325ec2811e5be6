"""Loads for the validation of the simulator, at rates that fit the calibrated replica."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import workbench as wb
from workbench.whatif.calibration import Calibration
from workbench.whatif.simulator import simulate

THINK_S = 0.5


@dataclass(frozen=True)
class Lengths:
    """Kinds of requests within the lengths that the calibration has seen."""

    prompt: int
    answer: int

    @classmethod
    def of(cls, calibration: Calibration) -> Lengths:
        """Return the longest prompt and the longest answer that the calibration has seen."""
        seen = calibration.seen
        return cls(int(seen["prompt_tokens"].high), int(seen["output_tokens"].high))

    @property
    def chat(self) -> wb.RandomPrompts:
        """Short prompts and answers, with a long tail."""
        return wb.RandomPrompts(
            input=wb.LogNormal(
                median=max(4, self.prompt // 10), sigma=0.7, low=4, high=self.prompt
            ),
            output=wb.LogNormal(
                median=max(4, self.answer // 5), sigma=0.6, low=4, high=self.answer
            ),
        )

    @property
    def reading(self) -> wb.RandomPrompts:
        """Long prompts, short answers."""
        return wb.RandomPrompts(
            input=wb.Uniform(low=self.prompt // 3, high=2 * self.prompt // 3),
            output=wb.Uniform(low=4, high=max(4, self.answer // 8)),
        )

    @property
    def writing(self) -> wb.RandomPrompts:
        """Short prompts, long answers."""
        return wb.RandomPrompts(
            input=wb.Uniform(low=4, high=max(4, self.prompt // 16)),
            output=wb.Uniform(low=self.answer // 2, high=self.answer),
        )


def capacity(
    spec: wb.ServiceSpec, calibration: Calibration, prompts: wb.RandomPrompts, streams: int
) -> float:
    """Return the requests per second that one replica completes with this many streams."""
    load = wb.LoadSpec(
        arrivals=wb.ClosedLoop(max_concurrency=streams), prompts=prompts, count=20 * streams
    )
    return float(simulate(spec, load, calibration).summary().request_throughput)


def ongoing(
    spec: wb.ServiceSpec, calibration: Calibration, prompts: wb.RandomPrompts, rate: float
) -> float:
    """Return the mean number of requests in one replica (Little's law)."""
    arrivals = wb.Poisson(rate=rate)
    load = wb.LoadSpec(arrivals=arrivals, prompts=prompts, count=2000)
    return rate * float(simulate(spec, load, calibration).summary().mean_e2el_ms) / 1e3


def held_out_loads(
    spec: wb.ServiceSpec,
    calibration: Calibration,
    *,
    streams: int,
    seconds: float,
    seed: int,
    trace: Path,
    trace_speed: float | None = None,
) -> dict[str, wb.LoadSpec]:
    """Return loads that the calibration has not seen, by name.

    Args:
        spec: A service with one replica.
        calibration: The constants of the replica.
        streams: Streams at which the capacity of the replica is computed.
        seconds: Duration of each load.
        seed: The seed of the first load; each has its own.
        trace: The trace to replay. A new one is written there if the file does not exist.
        trace_speed: Speed of the replay.
    """
    lengths = Lengths.of(calibration)
    most = {
        kind: capacity(spec, calibration, getattr(lengths, kind), streams)
        for kind in ("chat", "reading", "writing")
    }
    if not trace.exists():
        write_trace(trace, lengths, 0.5 * most["chat"], seconds, seed)
    as_recorded = wb.RandomPrompts(input=wb.FromTrace(), output=wb.FromTrace())
    count = int(seconds / THINK_S * streams / 2)
    loads = {
        "light": (wb.Poisson(rate=0.3 * most["chat"]), lengths.chat),
        "heavy": (wb.Poisson(rate=0.7 * most["chat"]), lengths.chat),
        "reading": (wb.Constant(rate=0.5 * most["reading"]), lengths.reading),
        "writing": (wb.Poisson(rate=0.5 * most["writing"]), lengths.writing),
        "burst": (wb.Gamma(rate=0.5 * most["chat"], burstiness=0.2), lengths.chat),
        "ramp": (
            wb.Ramp(from_rate=0, to_rate=0.9 * most["chat"], duration_s=seconds),
            lengths.chat,
        ),
        "users": (wb.ClosedLoop(max_concurrency=streams // 2, think_s=THINK_S), lengths.chat),
        "trace": (wb.TraceReplay(path=str(trace), speed=trace_speed or 1.0), as_recorded),
    }
    ends = {"users": {"count": min(count, int(0.8 * most["chat"] * seconds))}}
    return {
        name: wb.LoadSpec(
            arrivals=arrivals,
            prompts=prompts,
            seed=seed + number,
            **ends.get(name, {"duration_s": seconds}),
        )
        for number, (name, (arrivals, prompts)) in enumerate(loads.items())
    }


def write_trace(file: Path, lengths: Lengths, rate: float, seconds: float, seed: int) -> None:
    """Write a trace of users who each send a few requests, one soon after another.

    Args:
        file: The file, in BurstGPT's format.
        lengths: The lengths of the requests.
        rate: Mean requests per second.
        seconds: Duration of the trace.
        seed: The seed.
    """
    rng = np.random.default_rng(seed)
    prompts, answers = lengths.chat.input, lengths.chat.output
    assert isinstance(prompts, wb.LogNormal)
    assert isinstance(answers, wb.LogNormal)
    rows: list[tuple[float, int, int]] = []
    while len(rows) < rate * seconds:
        at_s = rng.uniform(0, seconds)
        for _ in range(rng.integers(2, 9)):
            prompt, answer = prompts.draw(rng), answers.draw(rng)
            if at_s < seconds:
                rows.append((at_s, prompt, answer))
            at_s += rng.exponential(1.0)
    lines = [f"{at_s:.3f},{prompt},{answer}" for at_s, prompt, answer in sorted(rows)]
    head = "Timestamp,Request tokens,Response tokens"
    file.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Scaled:
    """An autoscaled load, and the scaling that it needs."""

    load: wb.LoadSpec
    scaling: wb.ScalingSpec
    peak_rate: float


def scaled_load(
    spec: wb.ServiceSpec,
    calibration: Calibration,
    *,
    replicas: int,
    streams: int,
    peak_s: float,
    seed: int,
) -> Scaled:
    """Return a load that needs one replica, then all of them, then fewer again.

    The peak is 60 % of what one replica can do, so that the load is served while others start. The
    target is such that it asks for all replicas.

    Args:
        spec: A service with one replica.
        calibration: The constants of a replica.
        replicas: The largest number of replicas.
        streams: Streams at which the capacity of a replica is computed.
        peak_s: Seconds of the peak.
        seed: The seed of the load.
    """
    prompts = Lengths.of(calibration).chat
    peak = 0.6 * capacity(spec, calibration, prompts, streams)
    busy = replicas * ongoing(spec, calibration, prompts, peak / replicas)
    scaling = wb.ScalingSpec(
        max_replicas=replicas,
        target_ongoing_requests=round(busy / (replicas - 0.5), 3),
        upscale_delay_s=5,
        downscale_delay_s=10,
        metrics_interval_s=1,
        look_back_period_s=5,
    )
    low = peak / (3 * replicas)
    middle = [(peak / 2, 45.0)] if replicas > 2 else []
    steps = [(low, 20.0), (peak, peak_s), *middle, (low, 45.0)]
    load = wb.LoadSpec(
        arrivals=wb.Steps(steps=steps),
        prompts=prompts,
        duration_s=sum(seconds for _, seconds in steps),
        timeout_s=600,
        seed=seed,
    )
    return Scaled(load, scaling, peak)
