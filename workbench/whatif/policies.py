"""This project's autoscaling policies, and the figures that replicas report to them.

A port of `serving.deploy.autoscaling` and `serving.engine.stats`; a test compares the two.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from workbench.whatif._compiled import allocating, compiled, inner
from workbench.whatif.reports import Series, mean_row
from workbench.whatif.state import ACTIVE

if TYPE_CHECKING:
    from workbench.whatif.state import Fleet, Floats, Ints, Model

REQUESTS, ENGINE_PRESSURE, TTFT_TARGET = range(3)
WAITING, BATCH, KV_USAGE, TTFT = range(4)
FIGURES = 4
FIRSTS_WINDOW_S = 10.0
"""Seconds for which a replica remembers a time to first token."""

MAX_GROWTH = 2.0
"""The factor by which the policy on TTFT grows at most."""


class Policy(NamedTuple):
    """A policy and its parameters: those of the other policies are 0."""

    kind: int
    per_replica: float
    kv_cache_usage: float
    waiting_requests: float
    ttft_s: float
    quantile: float
    slack: float


@compiled
def engine_figures(model: Model, fleet: Fleet, slot: int) -> tuple[float, float, float]:
    """Return a replica's waiting requests, running requests and share of the KV cache in use."""
    replicas = fleet.replicas
    waiting = replicas[slot].queued
    request = replicas[slot].head
    for _ in range(replicas[slot].waiting):
        # A request is in the engine only after its front end.
        waiting += fleet.requests[request].ready_s <= replicas[slot].step_from_s
        request = fleet.requests[request].next
    used = 1.0 - replicas[slot].free / model.blocks
    return float(waiting), float(replicas[slot].batch), used


@allocating
def recent_ttft(fleet: Fleet, slot: int, now: float, quantile: float) -> float:
    """Return a quantile of a replica's recent times to first token, NaN if there are none.

    Requests that wait longer than the median of the others count with their age.
    """
    requests, replicas = fleet.requests, fleet.replicas
    times, count = np.empty(fleet.firsts.shape[1]), 0
    for at in range(fleet.firsts.shape[1]):
        first = fleet.firsts[slot, at]
        if first.at_s <= now and now - first.at_s <= FIRSTS_WINDOW_S:
            times[count] = first.took_s
            count += 1
    times = np.sort(times[:count])
    median = _quantile(times, 0.5) if len(times) > 0 else 0.0
    room = replicas[slot].batch + replicas[slot].waiting + replicas[slot].queued
    late, count = np.empty(room), 0
    for request in _unanswered(fleet, slot, now):
        age = now - requests[request].sent_s
        if age > median:
            late[count] = age
            count += 1
    values = np.sort(np.concatenate((times, late[:count])))
    return _quantile(values, quantile) if len(values) > 0 else np.nan


@allocating
def _unanswered(fleet: Fleet, slot: int, now: float) -> Ints:
    """Return the requests of a replica whose first token has not been sent."""
    requests, replicas = fleet.requests, fleet.replicas
    room = replicas[slot].batch + replicas[slot].waiting + replicas[slot].queued
    found, count = np.empty(room, np.int64), 0
    for at in range(replicas[slot].batch):
        request = fleet.seats[slot, at].request
        if not requests[request].first_s <= now:
            found[count] = request
            count += 1
    for request, length in (
        (replicas[slot].head, replicas[slot].waiting),
        (replicas[slot].gate_head, replicas[slot].queued),
    ):
        for _ in range(length):
            if not requests[request].first_s <= now:
                found[count] = request
                count += 1
            request = requests[request].next
    return found[:count]


@inner
def _quantile(ordered: Floats, share: float) -> float:
    """Return the smallest value with at least this share at or below it."""
    return float(ordered[max(0, math.ceil(share * len(ordered)) - 1)])


@inner
def mean_figure(fleet: Fleet, figures: Series, figure: int, now: float) -> float:
    """Return the mean of a figure over the replicas that report it, NaN if none does."""
    added, reporting = 0.0, 0
    for at in range(fleet.counts[ACTIVE]):
        row = fleet.replicas[at].active * FIGURES + figure
        if figures.sizes[row].reported > 0:
            added += mean_row(figures, row, now)
            reporting += 1
    return added / reporting if reporting > 0 else np.nan


@compiled
def policy_desired(
    policy: Policy, fleet: Fleet, figures: Series, now: float, in_handle: float, target: int
) -> float:
    """Return what a policy of this project asks for; the target while nothing is reported.

    Args:
        policy: The policy.
        fleet: The fleet.
        figures: What the replicas reported.
        now: The time in seconds.
        in_handle: Requests that wait in the deployment handle.
        target: The target so far.
    """
    running = fleet.counts[ACTIVE]
    waiting = mean_figure(fleet, figures, WAITING, now)
    if running == 0 or np.isnan(waiting):
        return float(target)
    waiting += in_handle / max(1, running)
    if policy.kind == ENGINE_PRESSURE:
        usage = mean_figure(fleet, figures, KV_USAGE, now)
        return float(
            running * max(usage / policy.kv_cache_usage, waiting / policy.waiting_requests)
        )
    if mean_figure(fleet, figures, BATCH, now) == 0 and waiting == 0:
        return 0.0
    ttft_s = mean_figure(fleet, figures, TTFT, now)
    share = 0.0 if np.isnan(ttft_s) else ttft_s / policy.ttft_s
    if share > 1:
        return float(running * min(share, MAX_GROWTH))
    has_slack = share < policy.slack and waiting < 1
    return float(max(1, running - 1) if has_slack else running)
