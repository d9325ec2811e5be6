"""What the page shows of the controls and the header, as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.dashboard.controller import Controller, Settings
    from workbench.loadgen.handle import LiveLoad

GAPS = (
    ("even", None),
    ("Poisson (1)", 1.0),
    ("bursty (0.5)", 0.5),
    ("very bursty (0.2)", 0.2),
)
"""The choices of burstiness: label, and shape of the gamma distribution."""
STATES = {
    "waiting": "Ready",
    "starting": "Starting",
    "running": "Running",
    "paused": "Paused",
    "settling": "Scaling down",
    "ended": "Ended",
    "interrupted": "Interrupted",
    "failed": "Failed",
}
"""The states of the dashboard, and their names."""
OVER = ("settling", "ended", "interrupted", "failed")


def load_controls(settings: Settings) -> dict[str, Any]:
    """Return the controls of the load with their limits."""
    return {
        "rate": min(settings.rate, settings.max_rate),
        "max_rate": settings.max_rate,
        "rate_step": max(0.1, round(settings.max_rate / 100, 1)),
        "burstiness": settings.burstiness,
        "gaps": [list(choice) for choice in _gaps(settings.burstiness)],
        "output_tokens": settings.output_tokens,
        "max_output_tokens": settings.max_output_tokens,
        "disabled": "Press Start first",
        "manual": False,
    }


def _gaps(burstiness: float | None) -> tuple[tuple[str, float | None], ...]:
    if burstiness in dict(GAPS).values():
        return GAPS
    return (*GAPS, (f"{burstiness:g}", burstiness))


def scaling_controls(controller: Controller) -> dict[str, Any]:
    """Return the scaling in force, and whether a change is being applied; empty without one."""
    scaling = controller.scaling()
    return {} if scaling is None else asdict(scaling) | {"applying": controller.applying}


def disabled_because(state: str) -> str:
    """Return why the load cannot be changed; "" if it can."""
    if state in OVER:
        return "The load has ended: create another dashboard for another run"
    return "Press Start first" if state == "waiting" else ""


def progress_fields(running: LiveLoad | None, plan_s: float | None) -> dict[str, Any]:
    """Return the part of the plan that is over (None without an end), in words and as a share."""
    if running is None:
        return {"share": None, "progress": f"The plan takes {_clock(plan_s)}" if plan_s else ""}
    elapsed_s = max(0.0, running.clock() - (running.start_s or running.clock()))
    ends_s = running.plan_ends_s
    if running.manual_rate:
        text = f"{_clock(elapsed_s)}, rate set by hand: runs until Stop"
        return {"share": None, "progress": text}
    if ends_s is None or not plan_s:
        return {"share": None, "progress": f"{_clock(elapsed_s)} elapsed"}
    done_s = min(plan_s, max(0.0, plan_s - (ends_s - running.clock())))
    return {
        "share": round(done_s / plan_s, 3),
        "progress": f"{_clock(done_s)} of {_clock(plan_s)}",
    }


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
