"""Arrivals as data: strict, frozen, described. `workbench.workload.schedule` turns them into send
times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, TypeAdapter, model_validator

from serving.errors import SpecError
from serving.spec.base import Strict
from workbench.errors import SettingError

MAX_RATE = 1e6
MIN_BURSTINESS = 1e-3

Rate = Annotated[float, Field(gt=0, le=MAX_RATE, allow_inf_nan=False)]
RateOrZero = Annotated[float, Field(ge=0, le=MAX_RATE, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# With far smaller shapes every drawn gap is 0 in floating point, and no schedule would ever end.
Burstiness = Annotated[float, Field(ge=MIN_BURSTINESS, allow_inf_nan=False)]
_SPACING = "Shape of the gamma law of the gaps: 1 is Poisson, below 1 bursty, None even."


class RateSegment(NamedTuple):
    """A stretch of `duration_s` over which the rate goes from one value to another in a line."""

    duration_s: float
    from_rate: float
    to_rate: float

    @property
    def requests(self) -> float:
        """The integral of the rate: the expected number of requests."""
        return self.duration_s * (self.from_rate + self.to_rate) / 2

    def rate_at(self, at_s: float) -> float:
        """The rate `at_s` seconds into it."""
        return self.from_rate + (self.to_rate - self.from_rate) * (at_s / self.duration_s)

    def cut(self, at_s: float) -> tuple[RateSegment, RateSegment]:
        """The stretch before `at_s` and the one after."""
        rate = self.rate_at(at_s)
        rest = self.duration_s - at_s
        return RateSegment(at_s, self.from_rate, rate), RateSegment(rest, rate, self.to_rate)

    def when(self, requests: float) -> float:
        """The second at which the integral of the rate reaches `requests`."""
        slope = (self.to_rate - self.from_rate) / self.duration_s
        # The root of slope/2 t² + from_rate t = requests that loses no digits as slope nears 0.
        root = math.sqrt(max(0.0, self.from_rate**2 + 2 * slope * requests))
        return min(2 * requests / (self.from_rate + root), self.duration_s) if requests else 0.0


class _Arrivals(Strict):
    def __init__(self, **fields: Any) -> None:
        for name, field in type(self).model_fields.items():
            if field.is_required() and name not in fields:
                given = ", ".join(fields) or "nothing"
                raise SpecError(
                    f"{type(self).__name__}.{name} is missing (given: {given}). {field.description}"
                )
        super().__init__(**fields)


class Constant(_Arrivals):
    """Requests at even distances, the first at 0."""

    kind: Literal["constant"] = Field("constant", description="Even distances.")
    rate: Rate = Field(description="Requests per second.")

    @property
    def burstiness(self) -> None:
        return None

    def pieces(self) -> tuple[RateSegment, ...]:
        return (RateSegment(math.inf, self.rate, self.rate),)


class Poisson(_Arrivals):
    """Requests that know nothing of each other: exponential gaps, the first from 0."""

    kind: Literal["poisson"] = Field("poisson", description="Exponential gaps.")
    rate: Rate = Field(description="Mean requests per second.")

    @property
    def burstiness(self) -> float:
        return 1.0

    def pieces(self) -> tuple[RateSegment, ...]:
        return (RateSegment(math.inf, self.rate, self.rate),)


class Gamma(_Arrivals):
    """Gamma-distributed gaps, the first from 0."""

    kind: Literal["gamma"] = Field("gamma", description="Gamma-distributed gaps.")
    rate: Rate = Field(description="Mean requests per second.")
    burstiness: Burstiness = Field(description="Shape of the gamma law; below 1 is bursty.")

    def pieces(self) -> tuple[RateSegment, ...]:
        return (RateSegment(math.inf, self.rate, self.rate),)


class Ramp(_Arrivals):
    """A rate that goes from one value to another in a line."""

    kind: Literal["ramp"] = Field("ramp", description="A rate that grows or falls in a line.")
    from_rate: RateOrZero = Field(description="Requests per second at the start.")
    to_rate: RateOrZero = Field(description="Requests per second at the end, and after it.")
    duration_s: Seconds = Field(description="Seconds from one rate to the other.")
    burstiness: Burstiness | None = Field(1.0, description=_SPACING)

    def pieces(self) -> tuple[RateSegment, ...]:
        return (RateSegment(self.duration_s, self.from_rate, self.to_rate),)

    @model_validator(mode="after")
    def _sends_something(self) -> Self:
        if self.from_rate == self.to_rate == 0:
            raise ValueError("Ramp.from_rate = to_rate = 0: nothing is sent; raise one of them")
        return self


class Step(NamedTuple):
    """One rate for a while."""

    rate: RateOrZero
    duration_s: Seconds


class Steps(_Arrivals):
    """One rate after the other. A rate of 0 is a pause; one of them must be above 0."""

    kind: Literal["steps"] = Field("steps", description="One rate after the other.")
    steps: tuple[Step, ...] = Field(min_length=1, description="Pairs of rate and duration_s.")
    burstiness: Burstiness | None = Field(1.0, description=_SPACING)

    def pieces(self) -> tuple[RateSegment, ...]:
        return tuple(RateSegment(step.duration_s, step.rate, step.rate) for step in self.steps)

    @model_validator(mode="after")
    def _sends_something(self) -> Self:
        if not any(step.rate for step in self.steps):
            raise ValueError("Steps.steps: every rate is 0 and nothing is sent; raise one of them")
        return self


class Stage(NamedTuple):
    """In a line to `rate` within `duration_s`; a jump if that is 0."""

    rate: RateOrZero
    duration_s: SecondsOrZero


class Stages(_Arrivals):
    """Ramps one after the other, as load tests are often written: rise, hold, drop, rest.

    `Stages(stages=[(8, 60), (8, 30), (0, 0), (0, 40)])` rises to 8 a second within a minute, holds
    for half a minute, and drops to nothing for 40 s.
    """

    kind: Literal["stages"] = Field("stages", description="Ramps one after the other.")
    from_rate: RateOrZero = Field(0.0, description="Requests per second at the start.")
    stages: tuple[Stage, ...] = Field(min_length=1, description="Pairs of rate and duration_s.")
    burstiness: Burstiness | None = Field(1.0, description=_SPACING)

    def pieces(self) -> tuple[RateSegment, ...]:
        before = [self.from_rate, *(stage.rate for stage in self.stages)]
        ramps = zip(before, self.stages, strict=False)
        return tuple(RateSegment(to.duration_s, was, to.rate) for was, to in ramps if to.duration_s)

    @model_validator(mode="after")
    def _sends_something(self) -> Self:
        if not any(piece.requests for piece in self.pieces()):
            raise ValueError("Stages.stages: nothing is sent; raise a rate and its duration_s")
        return self


def diurnal(
    peak_rate: float,
    day_s: float,
    *,
    night: float = 0.1,
    width: float = 1.0,
    days: int = 1,
    burstiness: float | None = 1.0,
) -> Stages:
    """The load of `days` days, each within `day_s` seconds: quiet at its ends, busiest at noon.

    The rate at the share t of a day is peak_rate x (night + (1 - night) x s(t)), where s is
    ((1 - cos 2 pi t) / 2) to the power 1 / `width`: below 1 the busy hours are fewer, above more.
    It is drawn as 48 lines a day. Each day begins and ends at the night's rate. Seeded by the
    `LoadSpec` it stands in.

    Raises SettingError for a number that makes no day.
    """
    bounds = {"peak_rate": peak_rate > 0, "day_s": day_s > 0, "width": width > 0, "days": days >= 1}
    given = {"peak_rate": peak_rate, "day_s": day_s, "width": width, "days": days}
    wrong = [name for name, good in bounds.items() if not good]
    if wrong:
        raise SettingError(f"{wrong[0]} is {given[wrong[0]]!r}: give more than 0")
    if not 0 <= night <= 1:
        raise SettingError(f"night is {night!r}: give a share of the peak, from 0 to 1")

    def rate(half_hour: int) -> float:
        sun = (1 - math.cos(2 * math.pi * half_hour / 48)) / 2
        return float(peak_rate * (night + (1 - night) * sun ** (1 / width)))

    stages = tuple(Stage(rate(i % 48 or 48), day_s / 48) for i in range(1, 48 * days + 1))
    return Stages(from_rate=rate(0), stages=stages, burstiness=burstiness)


class ClosedLoop(_Arrivals):
    """A closed loop: the next request is sent when one ends. It has no offsets.

    With `think_s` it is so many users, each of whom waits before every request or conversation, the
    first included: they do not all begin at once. A conversation has its own `think_s` between its
    turns.
    """

    kind: Literal["closed"] = Field("closed", description="The next is sent when one ends.")
    max_concurrency: int = Field(ge=1, description="Requests in progress at any time, or users.")
    think_s: SecondsOrZero = Field(
        0.0, description="Mean wait of a user before a request or conversation; exponential."
    )


class TraceReplay(_Arrivals):
    """The arrivals of a recorded trace, which `workbench.workload.traces.replay` reads."""

    kind: Literal["trace"] = Field("trace", description="As recorded.")
    path: str = Field(min_length=1, description="A trace file, or the folder of a run.")
    start_s: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Cut before, in seconds of the trace."
    )
    end_s: Seconds | None = Field(None, description="Cut from here on, in seconds of the trace.")
    speed: Seconds = Field(1.0, description="Times as fast as recorded.")
    limit: int | None = Field(None, ge=1, description="Most requests to take.")

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
_KINDS = ("constant", "poisson", "gamma", "ramp", "steps", "stages", "closed", "trace")


def parse(fields: Mapping[str, Any]) -> Arrivals:
    """The spec that plain data stands for: its `kind` and that kind's fields.

    Raises SpecError naming the field, its value and what is wrong.
    """
    kind = fields.get("kind")
    if kind not in _KINDS:
        close = get_close_matches(str(kind), _KINDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"give one of {', '.join(_KINDS)}"
        raise SpecError(f"kind = {kind!r}: there are no such arrivals; {hint}")
    spec: Arrivals = TypeAdapter(Arrivals).validate_python(dict(fields))
    return spec
