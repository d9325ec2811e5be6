"""What the dashboard's controls show at first and what they do; and its figures in words."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from workbench.dashboard.view import Actions, Settings
from workbench.endpoints.deployed import Endpoint
from workbench.endpoints.remote import context_length
from workbench.endpoints.scaling import rescaled
from workbench.errors import SettingError

if TYPE_CHECKING:
    from workbench.dashboard.dashboard import Dashboard
    from workbench.figures.cluster_frames import Frames
    from workbench.loadgen.handle import LiveLoad
    from workbench.workload.spec import LoadSpec

MOST_OUTPUT = 1024


def peak_rate(load: LoadSpec) -> float:
    """The highest rate of the plan."""
    arrivals: Any = load.arrivals
    return float(max(max(piece.from_rate, piece.to_rate) for piece in arrivals.segments()))


def settings(dashboard: Dashboard) -> Settings:
    """From the load and the service as they are. Raises EndpointGoneError if nothing answers."""
    load, endpoint = dashboard.load, dashboard.endpoint
    arrivals, prompts = load.arrivals, load.prompts
    scaling = endpoint.spec.models[0].scaling if isinstance(endpoint, Endpoint) else None
    longest = getattr(prompts.input, "high", 1) if prompts.kind == "random" else 1
    output = int(getattr(prompts.output, "high", 1))
    room = (context_length(endpoint) or MOST_OUTPUT + longest) - longest
    return Settings(
        rate=arrivals.segments()[0].from_rate if hasattr(arrivals, "segments") else 0.0,
        max_rate=dashboard.max_rate,
        burstiness=getattr(arrivals, "burstiness", None),
        output_tokens=output,
        max_output_tokens=max(output, min(room, MOST_OUTPUT)),
        target_ongoing_requests=scaling.target_ongoing_requests if scaling else None,
        max_replicas=scaling.max_replicas if scaling else None,
    )


def actions(dashboard: Dashboard) -> Actions:
    """Each acts on the dashboard's load or service."""

    def running() -> LiveLoad:
        if dashboard.running is None:
            raise SettingError("the load has not started yet: press Start")
        return dashboard.running

    def start() -> None:
        if dashboard.running is None:
            dashboard.start()
        else:
            running().resume()

    def set_rate(rate: float) -> None:
        held = running().set_rate(rate)
        dashboard.say(f"{held:g} requests/s by hand" + (" (capped)" if held < rate else ""))

    return Actions(
        set_rate=set_rate,
        set_burstiness=lambda shape: running().set_burstiness(shape),
        set_output_tokens=lambda tokens: running().set_output_tokens(tokens),
        start=start,
        pause=lambda: running().pause(),
        stop=lambda: running().stop(),
        rescale=lambda target, most: _begin_rescaling(dashboard, target, most),
    )


def _begin_rescaling(dashboard: Dashboard, target: float, most: int) -> None:
    endpoint = dashboard.endpoint
    assert isinstance(endpoint, Endpoint)
    changed = {"target_ongoing_requests": target, "max_replicas": most}
    rescaled(endpoint.spec, changed)  # what is no scaling is said at once
    if dashboard.rescaling is not None and not dashboard.rescaling.done():
        raise SettingError("a change of scaling is on its way: wait for it")
    dashboard.rescaling = asyncio.get_running_loop().create_task(_rescale(dashboard, changed))


async def _rescale(dashboard: Dashboard, changed: dict[str, Any]) -> None:
    told = ", ".join(f"{name} = {value:g}" for name, value in changed.items())
    endpoint: Any = dashboard.endpoint
    if dashboard.running is not None and dashboard.running.state != "ended":
        dashboard.running.note("scaling", note=told)
    dashboard.say(f"applying {told}")
    try:
        await asyncio.to_thread(endpoint.rescale, progress=lambda _: None, **changed)
    except Exception as problem:
        dashboard.say(f"{told} was not applied: {problem}", bad=True)
        return
    dashboard.say(f"the service runs with {told}")


def readings(running: LiveLoad, frames: Frames) -> dict[str, str]:
    """The latest figures in words."""
    shown = {
        "offered": f"{running.rate:.1f}/s",
        "in flight": f"{running.in_progress}",
        "ended": f"{running.ended}",
        "failed": f"{running.failed}",
    }
    if len(frames.requests):
        shown["achieved"] = f"{frames.requests.achieved.iloc[-1]:.1f}/s"
    if running.dropped:
        shown["dropped (client too slow)"] = f"{running.dropped}"
    if len(frames.deployments):
        last = frames.deployments[frames.deployments.time_s == frames.deployments.time_s.iloc[-1]]
        shown["replicas"] = f"{last.running.sum():g} of {last.target.sum():g} wanted"
    if len(frames.cost):
        cost = frames.cost.iloc[-1]
        shown["cost"] = f"${cost.per_hour:.2f}/h, ${cost.so_far:.4f} so far"
        if cost.per_million == cost.per_million:
            shown["per million tokens"] = f"${cost.per_million:,.2f}"
    return shown
