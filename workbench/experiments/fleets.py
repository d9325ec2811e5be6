"""The same days of load on a fixed fleet and on an autoscaled one, and what each day cost.

A day's load is one after the other of `workbench.workload.arrivals.diurnal`. Replica-seconds
count in
the
window of the day, requests in the day in which they were due.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from serving.spec.service import EndpointSpec
from workbench.cost.cost import Cost, cost_of, with_cost
from workbench.cost.prices import Prices
from workbench.endpoints.deployed import Endpoint
from workbench.loadgen.start import start_load
from workbench.metrics.summary import Summary, summarize
from workbench.runs.run import Run
from workbench.telemetry.sampler import Telemetry

if TYPE_CHECKING:
    import pandas as pd

    from workbench.loadgen.progress import Progress
    from workbench.metrics.health import ClientHealth
    from workbench.metrics.slo import SLO
    from workbench.workload.arrivals import Stages
    from workbench.workload.point_process import RateSegment
    from workbench.workload.spec import LoadSpec

STEPS = 100
"""Of a schedule's piece, to see when it needs one replica more."""


@dataclass(frozen=True)
class Day:
    """One day of one fleet: what its users met, and what it cost."""

    summary: Summary
    cost: Cost


@dataclass(frozen=True)
class Fleet:
    """A fleet's days, in order, and the run that recorded them."""

    name: str
    run: Run
    days: tuple[Day, ...]

    @property
    def per_million(self) -> list[float]:
        """$ per million tokens within the SLO, a day each; 0 for a day without such a token."""
        return [day.cost.per_million_tokens or 0.0 for day in self.days]


async def run_days(
    endpoint: Endpoint,
    load: LoadSpec,
    slo: SLO,
    prices: Prices,
    *,
    run: Run,
    name: str,
    day_s: float,
    days: int,
    progress: Progress | str | None = "lines",
) -> Fleet:
    """Send `load`, which lasts `days` times `day_s`, to the fleet as it stands, and count.

    The run is kept under `run.path/fleets/NAME`. Replicas are sampled twice a second.
    """
    kept = {"fleet": name, "load": load.model_dump(mode="json"), "seed": load.seed}
    folder = Run.create(run.path / "fleets", kept, run_id=name)
    running = start_load(endpoint, load, run=folder, progress=progress)
    with Telemetry(endpoint, running.clock, folder.append_telemetry, interval_s=0.5):
        result = await running
        # The last day's replicas are held to its end, when all its answers may long be there.
        start = running.start_s or 0.0
        await asyncio.sleep(max(0.0, start + day_s * days - running.clock()))
    windows = [(start + i * day_s, start + (i + 1) * day_s) for i in range(days)]
    spec = endpoint.spec
    found = tuple(_day(folder, spec, slo, prices, window, result.health) for window in windows)
    whole = cost_of(folder, spec, prices, slo=slo, start_s=start, end_s=windows[-1][1])
    folder.finish(with_cost(result.summary(slo), whole))
    return Fleet(name, folder, found)


def _day(
    folder: Run,
    spec: EndpointSpec,
    slo: SLO,
    prices: Prices,
    window: tuple[float, float],
    health: ClientHealth,
) -> Day:
    start, end = window
    records = [one for one in folder.records() if start <= one.due_s < end]
    summary = summarize(records, slo=slo, duration_s=end - start, health=health)
    cost = cost_of(folder, spec, prices, slo=slo, start_s=start, end_s=end)
    return Day(with_cost(summary, cost), cost)


def fleet_frame(fleets: Sequence[Fleet]) -> pd.DataFrame:
    """A row a fleet and day: replica-seconds by state, $, tokens within the SLO, attainment.

    `energy_kwh` is there where GPUs reported their power.
    """
    import pandas as pd

    rows = [
        {
            "fleet": fleet.name,
            "day": number,
            "busy_s": day.cost.busy_s,
            "idle_s": day.cost.idle_s,
            "starting_s": day.cost.starting_s,
            "stopping_s": day.cost.stopping_s,
            "unknown_s": day.cost.unknown_s,
            "energy_kwh": day.cost.energy_kwh,
            "dollars": day.cost.dollars,
            "good_tokens": day.cost.input_tokens + day.cost.output_tokens,
            "per_million": day.cost.per_million_tokens,
            "per_million_input": day.cost.per_million_input_tokens,
            "per_million_output": day.cost.per_million_output_tokens,
            "slo_attainment": day.summary.slo_attainment,
            "client_limited": day.summary.client_health.client_limited,
        }
        for fleet in fleets
        for number, day in enumerate(fleet.days, 1)
    ]
    frame = pd.DataFrame(rows)
    reported = any(day.cost.energy_kwh is not None for fleet in fleets for day in fleet.days)
    return frame if reported else frame.drop(columns="energy_kwh", errors="ignore")


def cost_ratios(
    fixed: Fleet | None, scaled: Fleet | None, premium: float = 1.0
) -> list[tuple[float, float]]:
    """A pair a day, for `judge`: $ per million tokens of the fixed fleet over the autoscaled one's.

    `premium` is what a replica that comes and goes costs over one that stays, as on demand over
    committed.
    """
    if fixed is None or scaled is None:
        return []
    return [
        (one, premium * other)
        for one, other in zip(fixed.per_million, scaled.per_million, strict=True)
    ]


def max_savings_ratio(arrivals: Stages, replicas: int) -> float:
    """How many times less `arrivals` could cost, at most, than with `replicas` all the time.

    `replicas` is the need at the highest rate. Whole replicas would come and go at once and cost
    nothing to start, one always stays: replicas over the mean of max(1, replicas x rate / peak
    rounded up), over time.
    """
    pieces = arrivals.segments()
    peak = max(max(one.from_rate, one.to_rate) for one in pieces)

    def needed(one: RateSegment) -> float:
        rates = [one.rate_at((i + 0.5) / STEPS * one.duration_s) for i in range(STEPS)]
        return fmean(max(1, math.ceil(replicas * rate / peak - 1e-9)) for rate in rates)

    seconds = [one.duration_s for one in pieces]
    return replicas / fmean([needed(one) for one in pieces], seconds)


def max_savings_note(arrivals: Stages, replicas: int) -> str:
    """`most_saved` in words, for a verdict."""
    most = max_savings_ratio(arrivals, replicas)
    return f"on such days a fleet that followed the load at once would spend {most:.2f} times less"


def fleet_caveats(fleets: Sequence[Fleet]) -> list[str]:
    """Why the fleets' days decide nothing, if so: each a reason for `judge`."""
    doubts = []
    for fleet in fleets:
        days = [day.summary for day in fleet.days]
        if any(one.client_health.client_limited for one in days):
            doubts.append(f"the client limited the {fleet.name} fleet's load")
        if any(day.cost.unknown_s > 0.05 * day.cost.held_s for day in fleet.days):
            doubts.append(f"of the {fleet.name} fleet, 5 % or more was not seen (gaps)")
    return doubts
