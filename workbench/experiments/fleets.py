"""The same days of load on a fixed and on an autoscaled fleet, and the cost of each day.

The days of `workbench.workload.arrivals.diurnal` follow one another. Replica-seconds count in the
window of a day, requests in the day in which they were due.
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
"""Points of a rate segment at which the number of needed replicas is computed."""
MAX_UNKNOWN_SHARE = 0.05
"""Share of a day's replica-seconds that may be unknown without a caveat."""


@dataclass(frozen=True)
class Day:
    """One day of one fleet: the summary of its requests, and its cost."""

    summary: Summary
    cost: Cost


@dataclass(frozen=True)
class Fleet:
    """A fleet's days in order, and the run that recorded them."""

    name: str
    run: Run
    days: tuple[Day, ...]

    @property
    def per_million(self) -> list[float]:
        """$ per million tokens within the SLO of each day, 0 for a day without such tokens."""
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
    """Send days of load to a fleet and compute the cost of each day.

    Replicas are sampled twice a second.

    Args:
        endpoint: The fleet, scaled as it should be.
        load: The load of all days, `days` times `day_s` long.
        slo: The SLO that tokens must meet.
        prices: The prices of the fleet.
        run: The run; the fleet's own is in `run.path/fleets/NAME`, with a number if repeated.
        name: The fleet's name.
        day_s: Seconds of one day.
        days: Number of days.
        progress: How progress is shown.
    """
    experiment = {"fleet": name, "load": load.model_dump(mode="json"), "seed": load.seed}
    folder = Run.create(run.path / "fleets", experiment, run_id=name, numbered=True)
    running = start_load(endpoint, load, run=folder, progress=progress)
    with Telemetry(endpoint, running.clock, folder.append_telemetry, interval_s=0.5):
        result = await running
        # The last day's replicas count to its end, which may be long after the last answer.
        start = running.start_s or 0.0
        await asyncio.sleep(max(0.0, start + day_s * days - running.clock()))
    windows = [(start + i * day_s, start + (i + 1) * day_s) for i in range(days)]
    spec = endpoint.spec
    measured = tuple(_day(folder, spec, slo, prices, window, result.health) for window in windows)
    whole = cost_of(folder, spec, prices, slo=slo, start_s=start, end_s=windows[-1][1])
    folder.finish(with_cost(result.summary(slo), whole))
    return Fleet(name, folder, measured)


def _day(
    folder: Run,
    spec: EndpointSpec,
    slo: SLO,
    prices: Prices,
    window: tuple[float, float],
    health: ClientHealth,
) -> Day:
    start, end = window
    records = [record for record in folder.records() if start <= record.due_s < end]
    summary = summarize(records, slo=slo, duration_s=end - start, health=health)
    cost = cost_of(folder, spec, prices, slo=slo, start_s=start, end_s=end)
    return Day(with_cost(summary, cost), cost)


def fleet_frame(fleets: Sequence[Fleet]) -> pd.DataFrame:
    """Return one row per fleet and day: replica-seconds by state, $, tokens within the SLO, share.

    `energy_kwh` is a column if a GPU reported its power.
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
    """Return a pair per day for `evaluate_claim`: $ per million tokens, fixed and autoscaled.

    `premium` is the price of an autoscaled replica divided by that of a permanent one, such as
    on-demand over committed.
    """
    if fixed is None or scaled is None:
        return []
    return [
        (fixed_price, premium * scaled_price)
        for fixed_price, scaled_price in zip(fixed.per_million, scaled.per_million, strict=True)
    ]


def max_savings_ratio(arrivals: Stages, replicas: int) -> float:
    """Return how many times less `arrivals` could cost, at most, than with a fixed fleet.

    It is the ratio of `replicas`, the number needed at the peak rate, to the mean over time of
    max(1, ceil(replicas x rate / peak)): whole replicas come and go at once, cost nothing to
    start, and one always stays.
    """
    segments = arrivals.segments()
    peak = max(max(segment.from_rate, segment.to_rate) for segment in segments)

    def needed(segment: RateSegment) -> float:
        rates = [segment.rate_at((i + 0.5) / STEPS * segment.duration_s) for i in range(STEPS)]
        return fmean(max(1, math.ceil(replicas * rate / peak - 1e-9)) for rate in rates)

    seconds = [segment.duration_s for segment in segments]
    return replicas / fmean([needed(segment) for segment in segments], seconds)


def max_savings_note(arrivals: Stages, replicas: int) -> str:
    """Return `max_savings_ratio` in words, as a note for a verdict."""
    ratio = max_savings_ratio(arrivals, replicas)
    return f"on such days a fleet that followed the load at once would cost {ratio:.2f} times less"


def fleet_caveats(fleets: Sequence[Fleet]) -> list[str]:
    """Return the reasons why the fleets' days decide nothing, for `evaluate_claim`."""
    caveats = []
    for fleet in fleets:
        if any(day.summary.client_health.client_limited for day in fleet.days):
            caveats.append(f"the client limited the load of the {fleet.name} fleet")
        if any(day.cost.unknown_s > MAX_UNKNOWN_SHARE * day.cost.held_s for day in fleet.days):
            caveats.append(f"gaps in the samples hide 5 % or more of the {fleet.name} fleet")
    return caveats
