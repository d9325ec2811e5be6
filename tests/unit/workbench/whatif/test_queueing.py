"""Mean waiting times against queueing theory, within a computed confidence interval."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats
from support.whatif import calibration, service

from workbench.whatif.simulator import simulate
from workbench.whatif.workload import single_requests

REQUESTS = 40_000
BATCHES = 40
CONFIDENCE = 0.999


def interval_of(waits_s: np.ndarray) -> tuple[float, float]:
    """The confidence interval of the mean of waits that depend on each other (batch means)."""
    kept = waits_s[len(waits_s) // 10 :]  # the queue is empty at first
    means = np.array([batch.mean() for batch in np.array_split(kept, BATCHES)])
    half = stats.t.ppf((1 + CONFIDENCE) / 2, BATCHES - 1) * means.std(ddof=1) / BATCHES**0.5
    return means.mean() - half, means.mean() + half


def test_one_slot_with_a_constant_time_waits_as_m_d_1() -> None:
    rng = np.random.default_rng(1)
    service_s, busy = 0.5, 0.7
    due_s = np.cumsum(rng.exponential(service_s / busy, REQUESTS))
    ones = np.ones(REQUESTS, np.int32)
    spec = service(max_ongoing_requests=1, target_ongoing_requests=1, max_queued_requests=8192)
    load = single_requests(due_s, ones, ones)
    frame = simulate(spec, load, calibration(step_s=service_s), token_times=False).requests_frame()
    waits_s = (frame.end_s - frame.sent_s).to_numpy() - service_s
    low, high = interval_of(waits_s)
    expected = busy * service_s / (2 * (1 - busy))  # Pollaczek-Khinchine
    assert low < expected < high
    assert high - low < 0.5 * expected


def test_replicas_of_one_slot_behind_a_handle_wait_as_m_m_c() -> None:
    rng = np.random.default_rng(2)
    count, step_s, mean_s, busy = 3, 0.001, 1.0, 0.8
    rate = busy * count / mean_s
    due_s = np.cumsum(rng.exponential(1 / rate, REQUESTS))
    tokens = np.ceil(rng.exponential(mean_s / step_s, REQUESTS)).astype(np.int32)
    spec = service(
        min_replicas=0,
        initial_replicas=count,
        max_replicas=count,
        downscale_delay_s=1e9,
        max_ongoing_requests=1,
        target_ongoing_requests=1,
        max_queued_requests=8192,
    )
    load = single_requests(due_s, np.ones(REQUESTS, np.int32), tokens)
    given = calibration(step_s=step_s, kv_blocks=10**6)
    frame = simulate(spec, load, given, token_times=False).requests_frame()
    waits_s = frame.ttft_ms.to_numpy() / 1e3 - step_s
    low, high = interval_of(waits_s)
    assert low < mean_wait_m_m_c(rate, 1 / mean_s, count) < high
    assert high - low < mean_wait_m_m_c(rate, 1 / mean_s, count)


def mean_wait_m_m_c(rate: float, served: float, count: int) -> float:
    """The mean wait of M/M/c (Erlang C)."""
    offered = rate / served
    waiting = offered**count / math.factorial(count) / (1 - offered / count)
    idle = sum(offered**number / math.factorial(number) for number in range(count))
    return waiting / (waiting + idle) / (count * served - rate)
