"""The two parts of an arrival process: a rate over time, and the gaps between requests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class RateSegment(NamedTuple):
    """A period of `duration_s` seconds in which the rate changes linearly between two values."""

    duration_s: float
    from_rate: float
    to_rate: float

    @property
    def requests(self) -> float:
        """The integral of the rate, which is the expected number of requests."""
        return self.duration_s * (self.from_rate + self.to_rate) / 2

    def rate_at(self, at_s: float) -> float:
        """Return the rate `at_s` seconds after the start of the segment."""
        return self.from_rate + (self.to_rate - self.from_rate) * (at_s / self.duration_s)

    def split(self, at_s: float) -> tuple[RateSegment, RateSegment]:
        """Return the parts of the segment before and after `at_s`."""
        rate = self.rate_at(at_s)
        rest_s = self.duration_s - at_s
        return RateSegment(at_s, self.from_rate, rate), RateSegment(rest_s, rate, self.to_rate)

    def time_of(self, requests: float) -> float:
        """Return the second at which the integral of the rate reaches `requests`."""
        slope = (self.to_rate - self.from_rate) / self.duration_s
        # This form of the root of slope/2 t² + from_rate t = requests keeps its precision as the
        # slope approaches 0.
        root = math.sqrt(max(0.0, self.from_rate**2 + 2 * slope * requests))
        return min(2 * requests / (self.from_rate + root), self.duration_s) if requests else 0.0


def steady(rate: float) -> tuple[RateSegment, ...]:
    """Return one segment of a constant rate that never ends."""
    return (RateSegment(math.inf, rate, rate),)


class Gaps:
    """A distribution of the gaps between requests at a mean rate of 1 request per second."""

    def first(self, rng: np.random.Generator) -> float:
        """Draw the gap before the first request."""
        return self.next(rng)

    def next(self, rng: np.random.Generator) -> float:
        """Draw the gap between two requests. Its mean is 1."""
        raise NotImplementedError


class EvenGaps(Gaps):
    """Equal gaps. The first request comes at once."""

    def first(self, rng: np.random.Generator) -> float:
        """Return 0."""
        return 0.0

    def next(self, rng: np.random.Generator) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class GammaGaps(Gaps):
    """Gamma-distributed gaps: a `shape` of 1 is Poisson, below 1 is bursty."""

    shape: float

    def next(self, rng: np.random.Generator) -> float:
        """Draw from the gamma distribution of this shape and mean 1."""
        return float(rng.standard_gamma(self.shape)) / self.shape


def gaps_of(burstiness: float | None) -> Gaps:
    """Return the gaps of a burstiness: gamma-distributed, or even for None."""
    return EvenGaps() if burstiness is None else GammaGaps(burstiness)
