"""The latest figures of a running load in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.figures.cluster_frames import Frames
    from workbench.loadgen.handle import LiveLoad


def readings(running: LiveLoad, frames: Frames) -> dict[str, str]:
    """Return the latest values with their units, by label."""
    values = {
        "Offered": f"{running.rate:.1f}/s",
        "In flight": f"{running.in_progress}",
        "Finished": f"{running.ended}",
        "Failed": f"{running.failed}",
    }
    if len(frames.requests):
        values["Completed"] = f"{frames.requests.achieved.iloc[-1]:.1f}/s"
    if running.dropped:
        values["Dropped (client too slow)"] = f"{running.dropped}"
    return values | _replicas(frames) | _cost(frames)


def _replicas(frames: Frames) -> dict[str, str]:
    samples = frames.samples("deployment")
    if samples.empty:
        return {}
    last = samples[samples.time_s == samples.time_s.iloc[-1]]
    return {"Replicas": f"{last.running.sum():g} of {last.target.sum():g} (target)"}


def _cost(frames: Frames) -> dict[str, str]:
    if frames.cost.empty:
        return {}
    cost = frames.cost.iloc[-1]
    values = {"Cost": f"${cost.per_hour:.2f}/hour, ${cost.so_far:.4f} so far"}
    if cost.per_million == cost.per_million:
        values["Per million tokens"] = f"${cost.per_million:,.2f}"
    return values
