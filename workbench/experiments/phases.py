"""A load in phases, each of which ends when the service shows what the phase waits for.

    phases = autoscaling_phases(rate=5, slo=SLO(ttft_ms=1000))
    outcomes = await run_phases(phases, running, run, deployment=endpoint.deployment)

`run_phases` controls a load that `start_live_load` or the dashboard has started. It reads the
run's folder, where records and samples are appended, so telemetry must be recorded there too.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from workbench.experiments.run_watch import RunWatch, View
from workbench.runs.jsonl import read_document, write_document

if TYPE_CHECKING:
    from workbench.clock import Clock
    from workbench.runs.run import Run

POLL_S = 0.5
"""Seconds between two looks at the service."""
DRAIN_LIMIT_S = 60.0
"""Maximum seconds to wait for the last answers."""
SETTLE_S = 1.5
"""Seconds after which the load workers have applied a rate and reported what is in progress."""
PHASES_FILE = "phases.json"

Ending = Literal["reached", "limit", "manual", "stopped"]


@dataclass(frozen=True)
class Phase:
    """A part of a load, until the service shows what it waits for.

    Attributes:
        name: The name.
        waits_for: What it waits for, in words.
        until: Whether the service shows it.
        limit_s: Maximum duration in seconds.
        rate: Requests/s, or a function that returns them from what is known when the phase starts
            and from the rate before it; None keeps that rate.
        growth: Factor by which the rate grows every `growth_every_s`, up to `max_rate`.
        growth_every_s: Seconds between two increases.
        max_rate: The highest rate, in requests/s.
    """

    name: str
    waits_for: str
    until: Callable[[View], bool]
    limit_s: float
    rate: float | Callable[[View, float], float] | None = None
    growth: float = 1.0
    growth_every_s: float = 5.0
    max_rate: float = math.inf

    def first_rate(self, view: View, before: float) -> float | None:
        """Return the rate at the start of the phase; None to keep the rate `before` it."""
        return self.rate(view, before) if callable(self.rate) else self.rate

    def rate_at(self, first_rate: float, phase_s: float) -> float:
        """Return the rate after `phase_s` seconds in the phase."""
        steps = math.floor(max(0.0, phase_s) / self.growth_every_s)
        return min(first_rate * self.growth**steps, max(self.max_rate, first_rate))


@dataclass(frozen=True)
class PhaseOutcome:
    """A phase that ended, in seconds on the run's clock.

    `ended_by` is "reached" if the service showed what the phase waited for, "limit" if time was up,
    "manual" if a person set another rate, and "stopped" if the load ended.
    """

    name: str
    waits_for: str
    start_s: float
    end_s: float
    ended_by: Ending


class Controlled(Protocol):
    """The part of a `LiveLoad` that phases need."""

    state: Any
    manual_rate: bool
    in_progress: int

    @property
    def clock(self) -> Clock:
        """The run's clock, in seconds."""

    @property
    def rate(self) -> float:
        """The current target rate, in requests/s."""

    def follow_rate(self, rate: float) -> float:
        """Send at this rate from now on."""

    def stop(self, reason: str) -> None:
        """End the load."""


async def run_phases(
    phases: Sequence[Phase],
    load: Controlled,
    run: Run,
    *,
    deployment: str | None,
    notify: Callable[[str], None] = print,
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
) -> list[PhaseOutcome]:
    """Run `phases` one after the other, then end the load, and write `phases.json`.

    If a person sets a rate or stops the load, the phases end, and the load is left as it is.

    Args:
        phases: The phases.
        load: A live load that has been started.
        run: The folder in which the load and the telemetry are recorded.
        deployment: The deployment to watch; None for an endpoint without telemetry.
        notify: Receives a line at the start and at the end of each phase.
        sleep: Waits some seconds.

    Returns:
        The phases that ran.
    """
    watch, outcomes = RunWatch(run.path, deployment), list[PhaseOutcome]()
    while load.state == "starting":
        await sleep(POLL_S)
    for phase in phases:
        _write(run, outcomes, phase)
        outcomes.append(await _run_phase(phase, load, watch, notify, sleep))
        _write(run, outcomes)
        if outcomes[-1].ended_by in ("manual", "stopped"):
            return outcomes
    await _end(load, sleep)
    return outcomes


def read_phases(run: Run) -> list[PhaseOutcome]:
    """Return the phases of a saved run; empty if it had none.

    Raises:
        RunError: The file cannot be read.
    """
    file = run.path / PHASES_FILE
    phases = read_document(file)["phases"] if file.exists() else []
    return [PhaseOutcome(**fields) for fields in phases]


def present_phase(path: Path) -> tuple[str, str] | None:
    """Return the name of the phase that runs in the run folder `path`, and what it waits for."""
    file = path / PHASES_FILE
    present = read_document(file).get("present") if file.exists() else None
    return None if present is None else (present["name"], present["waits_for"])


def _write(run: Run, outcomes: Sequence[PhaseOutcome], present: Phase | None = None) -> None:
    document: dict[str, Any] = {"phases": [asdict(outcome) for outcome in outcomes]}
    if present is not None:
        document["present"] = {"name": present.name, "waits_for": present.waits_for}
    write_document(run.path / PHASES_FILE, document)


async def _run_phase(
    phase: Phase,
    load: Controlled,
    watch: RunWatch,
    notify: Callable[[str], None],
    sleep: Callable[[float], Awaitable[Any]],
) -> PhaseOutcome:
    start_s, rate, ended_by = load.clock(), load.rate, _taken_over(load)
    first_rate = phase.first_rate(watch.view(start_s, start_s), rate)
    notify(f"{start_s:5.1f} s  {phase.name}: until {phase.waits_for}")
    while ended_by is None:
        # A rate would end a pause.
        if first_rate is not None and load.state != "paused":
            due = phase.rate_at(first_rate, load.clock() - start_s)
            if due != rate:
                rate = due
                load.follow_rate(rate)
        await sleep(POLL_S)
        ended_by = _taken_over(load) or _ending(phase, watch.view(load.clock(), start_s))
    end_s = load.clock()
    if ended_by != "reached":
        notify(f"{end_s:5.1f} s  {phase.name}: {_ENDINGS[ended_by].format(phase.limit_s)}")
    return PhaseOutcome(phase.name, phase.waits_for, start_s, end_s, ended_by)


_ENDINGS = {
    "limit": "not reached within {:g} s",
    "manual": "a person set the rate, so the phases end",
    "stopped": "the load was stopped",
}


def _taken_over(load: Controlled) -> Ending | None:
    if load.state == "ended":
        return "stopped"
    return "manual" if load.manual_rate else None


def _ending(phase: Phase, view: View) -> Ending | None:
    if phase.until(view):
        return "reached"
    return "limit" if view.phase_s >= phase.limit_s else None


async def _end(load: Controlled, sleep: Callable[[float], Awaitable[Any]]) -> None:
    """Send nothing more, wait for the last answers, and end the load."""
    if _taken_over(load):
        return
    load.follow_rate(0.0)
    deadline_s = load.clock() + DRAIN_LIMIT_S
    await sleep(SETTLE_S)
    while load.in_progress and load.clock() < deadline_s and not _taken_over(load):
        await sleep(POLL_S)
    if not _taken_over(load):
        load.stop("all phases are complete")
