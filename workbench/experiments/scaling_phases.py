"""The phases that show an autoscaler at work: steady, rise, scale-up, hold, drop, wake-up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.experiments.phases import Phase
from workbench.experiments.run_watch import View
from workbench.metrics.summary import summarize

if TYPE_CHECKING:
    from workbench.metrics.slo import SLO

STEADY_S = 10.0
WAKE_UP_S = 5.0
ENOUGH = 3
"""Requests without which a share says nothing."""
GROWTH, GROWTH_EVERY_S, MAX_GROWTH = 1.2, 10.0, 4.0
"""The rise after the load has doubled, if no second replica is wanted yet."""
WAKE_UP_LOAD_S = 4.0
"""Seconds of requests for a service without replicas; more would form a queue meanwhile."""


def autoscaling_phases(
    rate: float, slo: SLO, *, hold_s: float = 15.0, limit_s: float = 120.0
) -> list[Phase]:
    """Return phases for a service that has one replica, may have two, and scales to zero.

    ========== ================== ============================================================
    phase      requests/s         ends when
    ========== ================== ============================================================
    steady     `rate` / 2         requests meet the SLO, after 10 s at the earliest
    rise       `rate`, then more  the target is two replicas
    scale-up   as before          the second replica serves, and recent requests meet the SLO
    hold       as before          `hold_s` are over
    drop       0                  no replica is left
    wake-up    `rate` / 10, then 0 the first request was answered 5 s ago
    ========== ================== ============================================================

    The rise grows by a fifth every 10 s, up to four times `rate`. The wake-up sends for 4 s only.

    Args:
        rate: Requests/s that one replica cannot serve, but two can.
        slo: The bounds and the share of requests that must meet them.
        hold_s: Duration of the phase `hold` in seconds.
        limit_s: Maximum duration of each other phase in seconds.
    """

    def is_fast(view: View) -> bool:
        if len(view.recent) < ENOUGH:
            return False
        share = summarize(list(view.recent), slo=slo).slo_attainment
        return share is not None and share >= slo.target

    def is_steady(view: View) -> bool:
        return view.phase_s >= STEADY_S and is_fast(view)

    def is_awake(view: View) -> bool:
        answered = [r.first_token_s for r in view.phase_records if r.first_token_s is not None]
        return bool(answered) and view.time_s >= min(answered) + WAKE_UP_S

    return [
        Phase("steady", "requests meet the SLO", is_steady, limit_s, rate=rate / 2),
        Phase(
            "rise",
            "the autoscaler asks for a second replica",
            lambda view: view.target >= 2,
            limit_s,
            rate=rate,
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
        Phase(
            "wake-up",
            "the first request has been answered",
            is_awake,
            limit_s,
            rate=rate / 10,
            growth=0.0,
            growth_every_s=WAKE_UP_LOAD_S,
        ),
    ]
