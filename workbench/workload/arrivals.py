"""Specifications of arrivals. `workbench.workload.schedule` turns them into send times.

To add an arrival process, define its class here and add it to `Arrivals` and to `__all__`, whose
names are in `workbench` too. A subclass of `OpenArrivals` gives a rate over time (`segments`) and
the gaps between requests (`gaps`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, get_args

from pydantic import Field, TypeAdapter, model_validator

from serving.errors import SpecError
from serving.spec.base import Strict
from workbench.errors import SettingError
from workbench.workload.point_process import (
    EvenGaps,
    GammaGaps,
    Gaps,
    RateSegment,
    gaps_of,
    steady,
)

__all__ = [
    "ClosedLoop",
    "Constant",
    "Gamma",
    "Poisson",
    "Ramp",
    "Stages",
    "Steps",
    "TraceReplay",
    "diurnal",
]

MAX_RATE = 1e6
MIN_BURSTINESS = 1e-3

Rate = Annotated[float, Field(gt=0, le=MAX_RATE, allow_inf_nan=False)]
RateOrZero = Annotated[float, Field(ge=0, le=MAX_RATE, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# With a much smaller shape every drawn gap is 0 in floating point, and no schedule would end.
Burstiness = Annotated[float, Field(ge=MIN_BURSTINESS, allow_inf_nan=False)]
_BURSTINESS = (
    "Shape of the gamma distribution of the gaps: 1 is Poisson, below 1 bursty; None: even."
)


class _Arrivals(Strict):
    """A base that names a missing field and describes it."""

    def __init__(self, **fields: Any) -> None:
        for name, field in type(self).model_fields.items():
            if field.is_required() and name not in fields:
                names = ", ".join(fields) or "nothing"
                raise SpecError(
                    f"{type(self).__name__}.{name} is missing (given: {names}). {field.description}"
                )
        super().__init__(**fields)


class OpenArrivals(_Arrivals):
    """Arrivals on a schedule, which does not depend on the answers."""

    def segments(self) -> tuple[RateSegment, ...]:
        """Return the rate over time. After the last segment its final rate continues."""
        raise NotImplementedError

    def gaps(self) -> Gaps:
        """Return the distribution of the gaps between requests."""
        raise NotImplementedError

    @property
    def peak_rate(self) -> float:
        """The highest rate, in requests per second."""
        return max(max(segment.from_rate, segment.to_rate) for segment in self.segments())


class Constant(OpenArrivals):
    """Requests at equal distances, the first at 0."""

    burstiness: ClassVar[None] = None
    kind: Literal["constant"] = Field("constant", description="Equal gaps.")
    rate: Rate = Field(description="Requests per second.")

    def segments(self) -> tuple[RateSegment, ...]:
        """Return one endless segment."""
        return steady(self.rate)

    def gaps(self) -> Gaps:
        """Return equal gaps."""
        return EvenGaps()


class Poisson(OpenArrivals):
    """Independent requests: exponential gaps, the first counted from 0."""

    burstiness: ClassVar[float] = 1.0
    kind: Literal["poisson"] = Field("poisson", description="Exponential gaps.")
    rate: Rate = Field(description="Mean requests per second.")

    def segments(self) -> tuple[RateSegment, ...]:
        """Return one endless segment."""
        return steady(self.rate)

    def gaps(self) -> Gaps:
        """Return exponential gaps."""
        return GammaGaps(1.0)


class Gamma(OpenArrivals):
    """Gamma-distributed gaps, the first counted from 0."""

    kind: Literal["gamma"] = Field("gamma", description="Gamma-distributed gaps.")
    rate: Rate = Field(description="Mean requests per second.")
    burstiness: Burstiness = Field(
        description="Shape of the gamma distribution; below 1 is bursty."
    )

    def segments(self) -> tuple[RateSegment, ...]:
        """Return one endless segment."""
        return steady(self.rate)

    def gaps(self) -> Gaps:
        """Return gamma-distributed gaps."""
        return GammaGaps(self.burstiness)


class Ramp(OpenArrivals):
    """A rate that changes linearly from one value to another."""

    kind: Literal["ramp"] = Field("ramp", description="A rate that rises or falls linearly.")
    from_rate: RateOrZero = Field(description="Requests per second at the start.")
    to_rate: RateOrZero = Field(description="Requests per second at the end, and after it.")
    duration_s: Seconds = Field(description="Seconds from one rate to the other.")
    burstiness: Burstiness | None = Field(1.0, description=_BURSTINESS)

    def segments(self) -> tuple[RateSegment, ...]:
        """Return the ramp."""
        return (RateSegment(self.duration_s, self.from_rate, self.to_rate),)

    def gaps(self) -> Gaps:
        """Return gaps of this burstiness."""
        return gaps_of(self.burstiness)

    @model_validator(mode="after")
    def _sends_something(self) -> Self:
        if self.from_rate == self.to_rate == 0:
            raise ValueError("Ramp.from_rate = to_rate = 0: nothing is sent; raise one of them")
        return self


class Step(NamedTuple):
    """A constant rate for `duration_s` seconds."""

    rate: RateOrZero
    duration_s: Seconds


class Steps(OpenArrivals):
    """Constant rates, one after another. A rate of 0 is a pause; at least one must be above 0."""

    kind: Literal["steps"] = Field("steps", description="Constant rates, one after another.")
    steps: tuple[Step, ...] = Field(min_length=1, description="Pairs of rate and duration_s.")
    burstiness: Burstiness | None = Field(1.0, description=_BURSTINESS)

    def segments(self) -> tuple[RateSegment, ...]:
        """Return one segment per step."""
        return tuple(RateSegment(step.duration_s, step.rate, step.rate) for step in self.steps)

    def gaps(self) -> Gaps:
        """Return gaps of this burstiness."""
        return gaps_of(self.burstiness)

    @model_validator(mode="after")
    def _sends_something(self) -> Self:
        if not any(step.rate for step in self.steps):
            raise ValueError("Steps.steps: every rate is 0 and nothing is sent; raise one of them")
        return self


class Stage(NamedTuple):
    """A linear change to `rate` within `duration_s` seconds; a jump if that is 0."""

    rate: RateOrZero
    duration_s: SecondsOrZero


class Stages(OpenArrivals):
    """Ramps, one after another, as load tests are often written: rise, hold, drop, rest.

    `Stages(stages=[(8, 60), (8, 30), (0, 0), (0, 40)])` rises to 8 requests/s within a minute,
    holds for 30 s, and drops to 0 for 40 s.
    """

    kind: Literal["stages"] = Field("stages", description="Ramps, one after another.")
    from_rate: RateOrZero = Field(0.0, description="Requests per second at the start.")
    stages: tuple[Stage, ...] = Field(min_length=1, description="Pairs of rate and duration_s.")
    burstiness: Burstiness | None = Field(1.0, description=_BURSTINESS)

    def segments(self) -> tuple[RateSegment, ...]:
        """Return one segment per stage that takes time."""
        starts = [self.from_rate, *(stage.rate for stage in self.stages)]
        return tuple(
            RateSegment(stage.duration_s, start, stage.rate)
            for start, stage in zip(starts, self.stages, strict=False)
            if stage.duration_s
        )

    def gaps(self) -> Gaps:
        """Return gaps of this burstiness."""
        return gaps_of(self.burstiness)

    @model_validator(mode="after")
    def _sends_something(self) -> Self:
        if not any(segment.requests for segment in self.segments()):
            raise ValueError("Stages.stages: nothing is sent; raise a rate and its duration_s")
        return self


class ClosedLoop(_Arrivals):
    """A closed loop: the next request is sent when one ends, so there are no send times.

    With `think_s` it models users who wait before each request or conversation, the first
    included, so that they do not all begin at once. A conversation has its own `think_s` between
    its turns.
    """

    kind: Literal["closed"] = Field(
        "closed", description="Each request is sent when another one ends."
    )
    max_concurrency: int = Field(
        ge=1, description="Number of users, or of requests in progress at any time."
    )
    think_s: SecondsOrZero = Field(
        0.0,
        description="Mean wait of a user before a request or conversation (s); exponential.",
    )


TRACE_COLUMNS = (
    "timestamp",
    "input_length",
    "output_length",
    "hash_ids",
    "session_id",
    "delay",
    "text_input",
    "messages",
    "images",
)
"""The names that `TraceReplay.columns` gives to columns."""


class TraceReplay(_Arrivals):
    """The arrivals of a recorded trace, which `workbench.workload.traces.replay_trace` reads."""

    kind: Literal["trace"] = Field("trace", description="As recorded.")
    path: str = Field(min_length=1, description="A trace file, or the folder of a run.")
    start_s: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Start of the cut, in seconds of the trace."
    )
    end_s: Seconds | None = Field(
        None, description="End of the cut (exclusive), in seconds of the trace."
    )
    speed: Seconds = Field(
        1.0, description="Factor by which the replay is faster than the recording."
    )
    limit: int | None = Field(None, ge=1, description="Maximum number of requests.")
    time_unit: Literal["auto", "s", "ms", "us"] = Field(
        "auto", description="Unit of the times; auto: that of the format."
    )
    columns: dict[str, str] = Field(
        {},
        description="Columns of an unknown format by their names in the file, each with its "
        "standard name, such as input_length.",
    )
    block_size: int | None = Field(
        None, ge=1, le=1_000_000, description="Tokens per hash id; None: that of the format."
    )
    unfit: Literal["skip", "clip", "reject"] = Field(
        "skip",
        description="What to do with requests that have no length or do not fit the context.",
    )

    @model_validator(mode="after")
    def _columns_are_known(self) -> Self:
        unknown = [name for name in self.columns.values() if name not in TRACE_COLUMNS]
        if unknown:
            raise ValueError(
                f"TraceReplay.columns names {unknown[0]!r}, which is not a column of a trace; "
                f"give {', '.join(TRACE_COLUMNS)}"
            )
        return self

    @model_validator(mode="after")
    def _cut_is_not_empty(self) -> Self:
        if self.start_s is not None and self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError(
                f"TraceReplay.end_s = {self.end_s:g} is not after start_s = {self.start_s:g}; "
                "raise one or lower the other"
            )
        return self


Arrivals = Annotated[
    Constant | Poisson | Gamma | Ramp | Steps | Stages | ClosedLoop | TraceReplay,
    Field(discriminator="kind"),
]
ARRIVALS: dict[str, type[_Arrivals]] = {
    spec.model_fields["kind"].default: spec for spec in get_args(get_args(Arrivals)[0])
}
"""The specification of each `kind`."""


def kinds_of(base: type, *, field: str | None = None) -> str:
    """Return the kinds that are subclasses of `base` (and have `field`), as a list in prose."""
    kinds = [
        kind
        for kind, spec in ARRIVALS.items()
        if issubclass(spec, base) and (field is None or field in spec.model_fields)
    ]
    return " or ".join([", ".join(kinds[:-1]), kinds[-1]])


def parse_arrivals(fields: Mapping[str, Any]) -> Arrivals:
    """Return the specification in plain data: a `kind` and the fields of that kind.

    Raises:
        SpecError: A field is wrong. The message names the field, its value and the fix.
    """
    kind = fields.get("kind")
    if kind not in ARRIVALS:
        close = get_close_matches(str(kind), ARRIVALS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"give one of {', '.join(ARRIVALS)}"
        raise SpecError(f"kind = {kind!r}: there is no such arrival process; {hint}")
    spec: Arrivals = TypeAdapter(Arrivals).validate_python(dict(fields))
    return spec


def diurnal(
    peak_rate: float,
    day_s: float,
    *,
    night: float = 0.1,
    width: float = 1.0,
    days: int = 1,
    burstiness: float | None = 1.0,
) -> Stages:
    """Return the load of days with quiet nights and a peak at noon.

    At the fraction t of a day the rate is peak_rate x (night + (1 - night) x s(t)), where s is
    ((1 - cos 2 pi t) / 2) ** (1 / width). It is approximated by 48 linear stages a day. Each day
    begins and ends at the night's rate. The `LoadSpec` that holds it gives the seed.

    Args:
        peak_rate: Requests per second at noon.
        day_s: Seconds in a day.
        night: Rate at night as a fraction of the peak.
        width: Below 1 the busy hours are shorter, above 1 longer.
        days: Number of days.
        burstiness: Shape of the gamma distribution of the gaps; None for even gaps.

    Raises:
        SettingError: A number is out of range.
    """
    bounds = {"peak_rate": peak_rate > 0, "day_s": day_s > 0, "width": width > 0, "days": days >= 1}
    numbers = {"peak_rate": peak_rate, "day_s": day_s, "width": width, "days": days}
    invalid = [name for name, in_range in bounds.items() if not in_range]
    if invalid:
        raise SettingError(f"{invalid[0]} must be above 0, got {numbers[invalid[0]]!r}")
    if not 0 <= night <= 1:
        raise SettingError(f"night must be a fraction of the peak from 0 to 1, got {night!r}")

    def rate(half_hour: int) -> float:
        sun = (1 - math.cos(2 * math.pi * half_hour / 48)) / 2
        return float(peak_rate * (night + (1 - night) * sun ** (1 / width)))

    stages = tuple(Stage(rate(i % 48 or 48), day_s / 48) for i in range(1, 48 * days + 1))
    return Stages(from_rate=rate(0), stages=stages, burstiness=burstiness)
