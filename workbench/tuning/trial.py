"""One configuration at one rung: what was measured, and its score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from serving.spec.base import Frozen
from workbench.metrics.bootstrap import Interval, bootstrap
from workbench.metrics.summary import Summary
from workbench.tuning.configurations import Configuration

if TYPE_CHECKING:
    import numpy as np

GOODPUT = "request_goodput"


class Point(Frozen):
    """One repeat of one load. `load` is a rate or a concurrency; None: the load as it is."""

    load: float | None
    repeat: int
    summary: Summary


class Trial(Frozen):
    """A configuration at a rung: its points, or why there are none."""

    configuration: Configuration
    rung: int = Field(ge=0)
    points: tuple[Point, ...] = ()
    failure: str | None = None
    start_s: float = Field(0.0, ge=0, description="Seconds until the deployment was ready.")
    load_s: float = Field(0.0, ge=0, description="Seconds of warm-up and load.")

    def at(self, load: float | None) -> list[Summary]:
        """Return the summaries of one load, by repeat."""
        points = sorted((p for p in self.points if p.load == load), key=lambda p: p.repeat)
        return [point.summary for point in points]

    @property
    def loads(self) -> list[float | None]:
        """The loads in the order in which they were sent."""
        return list(dict.fromkeys(point.load for point in self.points))

    def score(self) -> Score | None:
        """Return the score of the best load, None without points.

        A load that meets the SLO is better than one that does not; among equals, the one with the
        higher mean goodput.
        """
        scores = [Score(load, tuple(self.at(load))) for load in self.loads]
        return max(scores, key=lambda score: score.rank, default=None)


@dataclass(frozen=True)
class Score:
    """The repeats of one load: whether they met the SLO, and their goodput."""

    load: float | None
    summaries: tuple[Summary, ...]

    @property
    def goodputs(self) -> list[float]:
        """The requests/s within the SLO of each repeat."""
        return [summary.figure(GOODPUT) or 0.0 for summary in self.summaries]

    @property
    def slo_met(self) -> bool:
        """Whether most repeats met the SLO."""
        return 2 * sum(summary.slo_met is True for summary in self.summaries) > len(self.summaries)

    @property
    def mean(self) -> float:
        """The mean goodput of the repeats, in requests/s."""
        return sum(self.goodputs) / len(self.goodputs)

    @property
    def rank(self) -> tuple[bool, float]:
        """Orders scores; higher is better."""
        return self.slo_met, self.mean

    @property
    def client_limited(self) -> bool:
        """Whether the client limited a repeat."""
        return any(summary.client_health.client_limited for summary in self.summaries)

    def interval(self, rng: np.random.Generator) -> Interval:
        """Return the mean goodput and its bootstrap interval over the repeats."""
        return bootstrap(self.goodputs, rng=rng)


def best_first(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials by their score, best first; those that failed are last."""

    def key(trial: Trial) -> tuple[bool, bool, float]:
        score = trial.score()
        return (False, False, 0.0) if score is None else (True, *score.rank)

    return sorted(trials, key=key, reverse=True)


def overlap(first: Interval, second: Interval) -> bool:
    """Return whether two intervals have a value in common."""
    return first.low <= second.high and second.low <= first.high
