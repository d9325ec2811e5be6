"""The phases that show an autoscaler at work, from a steady load to a wake-up."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from workbench.experiments.phases import Phase
from workbench.experiments.run_watch import View
from workbench.metrics.summary import summarize

if TYPE_CHECKING:
    from workbench.metrics.slo import SLO

FIRST_S, STEADY_S = 6.0, 10.0
WAKE_UP_S = 5.0
ENOUGH = 3
"""Requests without which a share says nothing."""
GROWTH, GROWTH_EVERY_S, MAX_GROWTH = 1.2, 10.0, 4.0
"""The rise after the load has doubled, if no second replica is wanted yet."""
WAKE_UP_LOAD_S = 4.0
"""Seconds of requests for a service without replicas; more would form a queue meanwhile."""
NEARLY_ALL = 0.9
"""Share of a replica's capacity at the doubled load. Half of it leaves a replica time to spare."""


def autoscaling_phases(
    rate: float, slo: SLO, *, slots: int = 0, hold_s: float = 15.0, limit_s: float = 120.0
) -> list[Phase]:
    """Return phases for a service of at most two replicas that scales to zero.

    ========== ================== ============================================================
    phase      requests/s         ends when
    ========== ================== ============================================================
    start      `rate` / 10, then 0 a request was answered
    first      `rate` / 4         requests meet the SLO, after 6 s; only with `slots`
    steady     `rate` / 2         requests meet the SLO, after 10 s at the earliest
    rise       `rate`, then more  the target is two replicas
    scale-up   as before          the second replica serves, and recent requests meet the SLO
    hold       as before          `hold_s` are over
    drop       0                  no replica is left
    wake-up    `rate` / 10, then 0 the first request was answered 5 s ago
    ========== ================== ============================================================

    The rise grows by a fifth every 10 s, up to four times `rate`. The start and the wake-up send
    for 4 s only: the service may have no replica, and a queue of requests would follow.
    With `slots` the phases suit a slower machine too: the rates are lower where the first requests
    show that a replica's capacity, `slots` / (their median latency), is less than `rate` / 0.9.

    Args:
        rate: Requests/s that one replica cannot serve, but two can; with `slots` the highest such
            rate.
        slo: The bounds and the share of requests that must meet them.
        slots: Requests that a replica computes at once; 0 if that does not limit it.
        hold_s: Duration of the phase `hold` in seconds.
        limit_s: Maximum duration of each other phase in seconds.
    """

    def is_fast(view: View) -> bool:
        if len(view.recent) < ENOUGH:
            return False
        share = summarize(list(view.recent), slo=slo).slo_attainment
        return share is not None and share >= slo.target

    def has_begun(view: View) -> bool:
        return view.phase_s >= FIRST_S and is_fast(view)

    def half_load(view: View, _: float) -> float:
        latencies = [r.end_s - r.sent_s for r in view.recent if r.end_s and r.sent_s]
        if not slots or not latencies:
            return rate / 2
        return min(rate, NEARLY_ALL * slots / statistics.median(latencies)) / 2

    def doubled(_: View, before: float) -> float:
        return 2 * before

    def is_steady(view: View) -> bool:
        return view.phase_s >= STEADY_S and is_fast(view)

    def answered(view: View) -> list[float]:
        return [r.first_token_s for r in view.phase_records if r.first_token_s is not None]

    def is_awake(view: View) -> bool:
        return bool(answered(view)) and view.time_s >= min(answered(view)) + WAKE_UP_S

    few: dict[str, float] = {
        "limit_s": limit_s,
        "rate": rate / 10,
        "growth": 0.0,
        "growth_every_s": WAKE_UP_LOAD_S,
    }
    first = Phase("first", "the first requests meet the SLO", has_begun, limit_s, rate=rate / 4)
    return [
        Phase("start", "a request has been answered", lambda view: bool(view.recent), **few),
        *([first] if slots else []),
        Phase("steady", "requests meet the SLO", is_steady, limit_s, rate=half_load),
        Phase(
            "rise",
            "the autoscaler requests a second replica",
            lambda view: view.target >= 2,
            limit_s,
            rate=doubled,
            growth=GROWTH,
            growth_every_s=GROWTH_EVERY_S,
            max_rate=MAX_GROWTH * rate,
        ),
        Phase(
            "scale-up",
            "the second replica serves and latency has recovered",
            lambda view: view.serving >= 2 and is_fast(view),
            limit_s,
        ),
        Phase(
            "hold",
            f"{hold_s:g} s are over",
            lambda view: view.phase_s >= hold_s,
            hold_s + 1,
        ),
        Phase("drop", "no replica is left", lambda view: view.held == 0, limit_s, rate=0.0),
        Phase("wake-up", "the first request has been answered", is_awake, **few),
    ]
