"""Arrivals as data: strict, frozen, described. `workbench.arrivals` turns them into send times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, TypeAdapter, model_validator

from serving.spec import Strict
from workbench.errors import SpecError

MAX_RATE = 1e6
MIN_BURSTINESS = 1e-3

Rate = Annotated[float, Field(gt=0, le=MAX_RATE, allow_inf_nan=False)]
RateOrZero = Annotated[float, Field(ge=0, le=MAX_RATE, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# With far smaller shapes every drawn gap is 0 in floating point, and no schedule would ever end.
Burstiness = Annotated[float, Field(ge=MIN_BURSTINESS, allow_inf_nan=False)]
_SPACING = "Shape of the gamma law of the gaps: 1 is Poisson, below 1 bursty, None even."


class Piece(NamedTuple):
    """A stretch of `duration_s` over which the rate goes from one value to another in a line."""

    duration_s: float
    from_rate: float
    to_rate: float

    @property
    def requests(self) -> float:
        """The integral of the rate: the expected number of requests."""
        return self.duration_s * (self.from_rate + self.to_rate) / 2

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

    def pieces(self) -> tuple[Piece, ...]:
        return (Piece(math.inf, self.rate, self.rate),)


class Poisson(_Arrivals):
    """Requests that know nothing of each other: exponential gaps, the first from 0."""

    kind: Literal["poisson"] = Field("poisson", description="Exponential gaps.")
    rate: Rate = Field(description="Mean requests per second.")

    @property
    def burstiness(self) -> float:
        return 1.0

    def pieces(self) -> tuple[Piece, ...]:
        return (Piece(math.inf, self.rate, self.rate),)


class Gamma(_Arrivals):
    """Gamma-distributed gaps, the first from 0."""

    kind: Literal["gamma"] = Field("gamma", description="Gamma-distributed gaps.")
    rate: Rate = Field(description="Mean requests per second.")
    burstiness: Burstiness = Field(description="Shape of the gamma law; below 1 is bursty.")

    def pieces(self) -> tuple[Piece, ...]:
        return (Piece(math.inf, self.rate, self.rate),)


class Ramp(_Arrivals):
    """A rate that goes from one value to another in a line."""

    kind: Literal["ramp"] = Field("ramp", description="A rate that grows or falls in a line.")
    from_rate: RateOrZero = Field(description="Requests per second at the start.")
    to_rate: RateOrZero = Field(description="Requests per second at the end, and after it.")
    duration_s: Seconds = Field(description="Seconds from one rate to the other.")
    burstiness: Burstiness | None = Field(1.0, description=_SPACING)

    def pieces(self) -> tuple[Piece, ...]:
        return (Piece(self.duration_s, self.from_rate, self.to_rate),)

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

    def pieces(self) -> tuple[Piece, ...]:
        return tuple(Piece(step.duration_s, step.rate, step.rate) for step in self.steps)

    @model_validator(mode="after")
    def _sends_something(self) -> Self:
        if not any(step.rate for step in self.steps):
            raise ValueError("Steps.steps: every rate is 0 and nothing is sent; raise one of them")
        return self


class Closed(_Arrivals):
    """A closed loop: the next request is sent when one ends. It has no offsets."""

    kind: Literal["closed"] = Field("closed", description="The next is sent when one ends.")
    max_concurrency: int = Field(ge=1, description="Requests in progress at any time.")


class Replay(_Arrivals):
    """The arrivals of a recorded trace, which `workbench.traces.replay` reads."""

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
                f"Replay.end_s = {self.end_s:g} is not after start_s = {self.start_s:g}; "
                "raise one or lower the other"
            )
        return self


Arrivals = Annotated[
    Constant | Poisson | Gamma | Ramp | Steps | Closed | Replay, Field(discriminator="kind")
]
_KINDS = ("constant", "poisson", "gamma", "ramp", "steps", "closed", "trace")


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
