"""The two kinds of metric: a latency with its statistics, and one number per run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from workbench.metrics.columns import STATUSES, Columns, total

if TYPE_CHECKING:
    from workbench.metrics.columns import Floats

    Formula = Callable[[Columns], Floats]

STATISTICS = ("mean", "median", "std", "p50", "p90", "p95", "p99")
Direction = Literal["lower", "higher"]


@dataclass(frozen=True)
class Latency:
    """A latency: a distribution of times, in `summary.json` as `{statistic}_{name}_ms`.

    Attributes:
        label: Its name on axes and in tables.
        formula: Seconds, an array with one element per request, NaN where it has no value. Only
            completed requests count.
        bounded: The values that an SLO compares with its bound, for requests that may not have
            completed; by default those of `formula`.
        pooled: Whether `formula` gives the values of all completed requests together instead of
            one per request. An SLO cannot bound such a metric.
        from_schedule: Whether it counts from the scheduled send instead of the actual one, so that
            a client that sends late cannot hide queueing.
        optional: Whether tables leave it out where it has no values.
    """

    unit: ClassVar[str] = "ms"
    direction: ClassVar[Direction] = "lower"

    name: str
    label: str
    description: str
    formula: Formula
    bounded: Formula | None = None
    pooled: bool = False
    from_schedule: bool = False
    optional: bool = False

    @property
    def key(self) -> str:
        """Its name as a bound of an SLO and as a column of `Run.requests_frame`."""
        return f"{self.name}_ms"

    def figures(self, *statistics: str) -> tuple[str, ...]:
        """Return the names in `summary.json`, for all of `STATISTICS` by default."""
        return tuple(f"{statistic}_{self.key}" for statistic in statistics or STATISTICS)


@dataclass(frozen=True)
class Totals:
    """What scalar metrics are computed from.

    Attributes:
        columns: The requests.
        duration: Seconds that the rates are taken over, None if unknown.
        good: Requests that completed within the SLO, None without an SLO.
        judged: Requests that the SLO judges.
        good_tokens: Output tokens of the good requests, None if unknown.
    """

    columns: Columns
    duration: float | None
    good: int | None
    judged: int
    good_tokens: int | None = None

    def count(self, *statuses: str) -> int:
        """Return how many requests ended with one of `statuses`."""
        return sum(int((self.columns.status == STATUSES[status]).sum()) for status in statuses)

    @property
    def prompt_tokens(self) -> int | None:
        """Prompt tokens of the completed requests, None if none is known."""
        return total(self.columns.prompt_tokens[self.columns.ok])

    @property
    def output_tokens(self) -> int | None:
        """Output tokens of the completed requests, None if none is known."""
        return total(self.columns.output_tokens[self.columns.ok])

    def per_second(self, value: float | None) -> float | None:
        """Return `value` per second of the duration."""
        return None if value is None or self.duration is None else value / self.duration


@dataclass(frozen=True)
class Scalar:
    """A metric with one value per run, in `summary.json` under its name.

    Attributes:
        label: Its name on axes and in tables.
        direction: Which values are better, None if neither are.
        kind: The type of the value.
        listed: Whether tables of several runs (comparison, sweep) contain it by default.
    """

    name: str
    label: str
    unit: str
    description: str
    formula: Callable[[Totals], float | None]
    direction: Direction | None = None
    kind: Any = float | None
    listed: bool = False
