"""CPU time of an engine's statistics per token: vLLM's logger for Ray and ours in turn."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

STEPS_PER_S = 40
"""Steps of the engine in a second, which is how often metrics are published."""


def statistics_figures(streams: int, tokens: int, repeats: int) -> dict[str, float]:
    """Return medians in microseconds of CPU time per token, without a connection to Ray.

    Args:
        streams: The number of tokens in each step.
        tokens: The number of steps.
        repeats: The number of pairs.
    """
    import prometheus_client
    from support.engine_statistics import engine_config, step
    from vllm.v1.metrics.loggers import PrometheusStatLogger
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    from serving.engine.ray_metrics import RayMetrics

    source = random.Random(1)
    steps = [step(source, streams) for _ in range(tokens)]
    theirs = RayPrometheusStatLogger(engine_config(), [0])
    ours = PrometheusStatLogger(engine_config(), [0])
    metrics = RayMetrics(prometheus_client.REGISTRY, "")
    ours.record(*steps[0])
    metrics.publish()
    publish_us = _cpu_us(metrics.publish, [()] * 20) / 20

    per_token: dict[str, list[float]] = {"ray": [], "ours": []}
    for pair in range(repeats):
        sides: list[tuple[str, Any]] = [("ray", theirs), ("ours", ours)]
        for side, logger in sides[:: -1 if pair % 2 else 1]:
            per_token[side].append(_cpu_us(logger.record, steps) / (streams * tokens))
    publishing = publish_us / (streams * STEPS_PER_S)
    totals = [value + publishing for value in per_token["ours"]]
    pairs = zip(totals, per_token["ray"], strict=True)
    return {
        "statistics_us_per_token_ray": round(median(per_token["ray"]), 3),
        "statistics_us_per_token": round(median(totals), 3),
        "statistics_ratio": round(median(ours / ray for ours, ray in pairs), 3),
        "publish_ms": round(publish_us / 1e3, 3),
    }


def _cpu_us(work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> float:
    began = time.process_time()
    for each in arguments:
        work(*each)
    return (time.process_time() - began) * 1e6
