"""When requests are sent: seeded schedules of send offsets. Pure: no clock, no file, no sleep.

A schedule is a spec, one of the kinds in `Arrivals`, and `offsets` turns it into seconds since its
start. Every open-loop kind is made alike. Points on a line of unit rate, evenly spaced or with
gaps from a gamma law of mean 1, are carried to seconds by the inverse of the integrated rate (the
time-rescaling theorem; Daley and Vere-Jones, An Introduction to the Theory of Point Processes,
section 7.4). So the expected number of requests follows the rate exactly while it changes, and the
burstiness stays what it is.

Burstiness is the shape b of the gamma law, as in `vllm bench serve`: the gaps have a coefficient of
variation of 1/sqrt(b), 1 is Poisson, below 1 is bursty. Unlike there, the offsets are not stretched
afterwards to meet the mean rate, so two runs of different seeds differ in it as chance has it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import count as integers
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, TypeAdapter, model_validator

from serving.spec import Strict
from workbench.errors import SettingError, SpecError

if TYPE_CHECKING:
    import numpy as np

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


class Constant(Strict):
    """Requests at even distances, the first at 0."""

    kind: Literal["constant"] = Field("constant", description="Even distances.")
    rate: Rate = Field(description="Requests per second.")

    @property
    def burstiness(self) -> None:
        return None

    def pieces(self) -> tuple[Piece, ...]:
        return (Piece(math.inf, self.rate, self.rate),)


class Poisson(Strict):
    """Requests that know nothing of each other: exponential gaps, the first from 0."""

    kind: Literal["poisson"] = Field("poisson", description="Exponential gaps.")
    rate: Rate = Field(description="Mean requests per second.")

    @property
    def burstiness(self) -> float:
        return 1.0

    def pieces(self) -> tuple[Piece, ...]:
        return (Piece(math.inf, self.rate, self.rate),)


class Gamma(Strict):
    """Gamma-distributed gaps, the first from 0."""

    kind: Literal["gamma"] = Field("gamma", description="Gamma-distributed gaps.")
    rate: Rate = Field(description="Mean requests per second.")
    burstiness: Burstiness = Field(description="Shape of the gamma law; below 1 is bursty.")

    def pieces(self) -> tuple[Piece, ...]:
        return (Piece(math.inf, self.rate, self.rate),)


class Ramp(Strict):
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


class Steps(Strict):
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


class Closed(Strict):
    """A closed loop: the next request is sent when one ends. It has no offsets."""

    kind: Literal["closed"] = Field("closed", description="The next is sent when one ends.")
    max_concurrency: int = Field(ge=1, description="Requests in progress at any time.")


class Replay(Strict):
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


def offsets(
    spec: Arrivals,
    rng: np.random.Generator,
    *,
    duration_s: float | None = None,
    count: int | None = None,
    trace: Iterable[float] | None = None,
) -> Iterator[float]:
    """Send times in seconds since the start, never decreasing, drawn one by one from `rng`.

    They are those before `duration_s`, and at most `count`. Without either, a ramp, steps and a
    trace end by themselves; with one, a ramp and steps go on at their last rate (and end early if
    that is 0). The same seed gives the same offsets, and a longer schedule starts with those of a
    shorter one. `trace` has the offsets of a `Replay`.

    Raises SettingError for a bound that is none, for endless arrivals without a bound, for a
    closed loop, and for a `Replay` whose trace is not given.
    """
    _check_bounds(duration_s, count)
    if isinstance(spec, Closed):
        raise SettingError("kind is 'closed': a closed loop sends when a request ends, not on time")
    if isinstance(spec, Replay):
        if trace is None:
            raise SettingError(f"trace is missing: read {spec.path} with workbench.traces.replay")
        times, own_end = iter(trace), math.inf
    else:
        pieces = spec.pieces()
        times = _rescaled(_unit_points(rng, spec.burstiness), pieces)
        own_end = sum(piece.duration_s for piece in pieces)
        if duration_s is count is None and own_end == math.inf:
            raise SettingError(f"kind is {spec.kind!r}, which has no end: give duration_s or count")
    bounded = duration_s is not None or count is not None
    end = (math.inf if duration_s is None else duration_s) if bounded else own_end
    return islice(takewhile(lambda at: at < end, times), count)


def _check_bounds(duration_s: float | None, count: int | None) -> None:
    if duration_s is not None and not 0 < duration_s < math.inf:
        raise SettingError(f"duration_s is {duration_s}: give a number of seconds above 0")
    if count is not None and count < 1:
        raise SettingError(f"count is {count}: give at least 1")


def _unit_points(rng: np.random.Generator, burstiness: float | None) -> Iterator[float]:
    if burstiness is None:
        yield from map(float, integers())
    at = 0.0
    while burstiness is not None:
        at += _unit_gap(rng, burstiness)
        yield at


def _unit_gap(rng: np.random.Generator, burstiness: float | None) -> float:
    return 1.0 if burstiness is None else float(rng.standard_gamma(burstiness)) / burstiness


def _rescaled(points: Iterable[float], pieces: tuple[Piece, ...]) -> Iterator[float]:
    """The times at which the integral of the rate reaches `points`; the last rate holds on."""
    last = pieces[-1].to_rate
    rest = iter([*pieces, Piece(math.inf, last, last)] if last else pieces)
    piece, start_s, before, at = next(rest), 0.0, 0.0, 0.0
    for point in points:
        while point - before >= piece.requests:
            start_s, before = start_s + piece.duration_s, before + piece.requests
            following = next(rest, None)
            if following is None:
                return
            piece = following
        # Rounding may turn two neighbours round by a last digit.
        at = max(at, start_s + piece.when(point - before))
        yield at


class LiveSchedule:
    """Arrivals whose rate and burstiness can be changed while they run.

    Pure: every call is told the time, in seconds on one clock. A driver waits until `due_s` or a
    change, whichever is first, then takes with `next` all that is due. A change acts at once: what
    is left of the pending gap is stretched or shortened to the new rate. A rate of 0 pauses, and
    the gap goes on where it was. Without changes the times are those of `offsets`.
    """

    def __init__(
        self,
        rate: float,
        rng: np.random.Generator,
        *,
        burstiness: float | None = 1.0,
        start_s: float = 0.0,
    ) -> None:
        """Raises SettingError for a rate or burstiness that is none."""
        self._rng = rng
        self._rate = _checked_rate(rate)
        self._burstiness = _checked_burstiness(burstiness)
        self._at_s = start_s
        self._left = 0.0 if burstiness is None else _unit_gap(rng, burstiness)
        # Due before a change, and not taken yet: the change must not move them.
        self._ready: deque[float] = deque()

    @property
    def rate(self) -> float:
        """Requests per second; 0 while paused."""
        return self._rate

    @property
    def burstiness(self) -> float | None:
        """The shape of the gamma law of the gaps; None for even ones."""
        return self._burstiness

    @property
    def due_s(self) -> float | None:
        """When the next request is due; None while paused."""
        return self._ready[0] if self._ready else self._pending_s()

    def next(self, now_s: float) -> float | None:
        """Take the next request if it is due by `now_s`: when it was due. None if none is."""
        due_s = self.due_s
        if due_s is None or due_s > now_s:
            return None
        return self._ready.popleft() if self._ready else self._take(due_s)

    def set_rate(self, rate: float, at_s: float) -> None:
        """Go on at `rate` from `at_s`, or from the last request taken or change made if later.

        Raises SettingError for a rate that is none; the old one then holds.
        """
        rate = _checked_rate(rate)
        self._advance(at_s)
        self._rate = rate

    def set_burstiness(self, burstiness: float | None, at_s: float) -> None:
        """Draw the gaps after the pending one from the new law. Otherwise as `set_rate`."""
        burstiness = _checked_burstiness(burstiness)
        self._advance(at_s)
        self._burstiness = burstiness

    def _pending_s(self) -> float | None:
        return self._at_s + self._left / self._rate if self._rate else None

    def _take(self, due_s: float) -> float:
        self._at_s, self._left = due_s, _unit_gap(self._rng, self._burstiness)
        return due_s

    def _advance(self, at_s: float) -> None:
        while (due_s := self._pending_s()) is not None and due_s <= at_s:
            self._ready.append(self._take(due_s))
        if at_s > self._at_s:
            self._left = max(0.0, self._left - (at_s - self._at_s) * self._rate)
            self._at_s = at_s


def _checked_rate(rate: float) -> float:
    if not 0 <= rate <= MAX_RATE:
        raise SettingError(f"rate is {rate}: give 0 (a pause) to {MAX_RATE:g} requests per second")
    return rate


def _checked_burstiness(burstiness: float | None) -> float | None:
    if burstiness is not None and not MIN_BURSTINESS <= burstiness < math.inf:
        raise SettingError(f"burstiness is {burstiness}: give {MIN_BURSTINESS:g} or more, or None")
    return burstiness
