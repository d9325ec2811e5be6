"""A service-level objective: bounds on latencies, and the share of requests that must meet them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ConfigDict, Field, ValidationError, create_model

from serving.spec.base import explain
from workbench.errors import SettingError, UnknownMetricError
from workbench.metrics.columns import STATUSES, total
from workbench.metrics.registry import PER_REQUEST

if TYPE_CHECKING:
    from workbench.metrics.columns import Columns, Mask

_BOUNDS: dict[str, Any] = {
    metric.key: (float | None, Field(None, gt=0, description=metric.description))
    for metric in PER_REQUEST
}
_Bounds: Any = create_model("_Bounds", **_BOUNDS)


class SLO(_Bounds):
    """Upper bounds in ms that a good request meets, and the share of requests that must be good.

    Every latency in `workbench.metrics.registry` with one value per request can be bounded.

    Raises:
        UnknownMetricError: If a name is not a metric.
        SettingError: If a value is not a bound, or no bound is given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: float = Field(0.99, gt=0, le=1, description="Share of requests that must be good.")

    if TYPE_CHECKING:
        # Created above from the registry; declared for type checkers and completion.
        ttft_ms: float | None
        tpot_ms: float | None
        e2el_ms: float | None
        ttft_from_schedule_ms: float | None
        e2el_from_schedule_ms: float | None

    def __init__(self, **bounds: Any) -> None:
        try:
            super().__init__(**bounds)
        except ValidationError as problem:
            unknown = any(item["type"] == "extra_forbidden" for item in problem.errors())
            kind = UnknownMetricError if unknown else SettingError
            raise kind(explain(problem, type(self))) from None
        if not self.bounds():
            raise SettingError(f"SLO has no bound: give at least one of {', '.join(_BOUNDS)}")

    def bounds(self) -> dict[str, float]:
        """Return the given bounds in ms, by name (`ttft_ms`)."""
        return self.model_dump(exclude={"target"}, exclude_none=True)

    def judge(self, columns: Columns) -> tuple[Mask, Mask]:
        """Return for each request whether it is good, and whether it exceeded a bound.

        A good request completed within every bound. A request whose bounded latency is unknown is
        neither.
        """
        bounds = self.bounds()
        good, exceeded = columns.ok, np.zeros(len(columns), bool)
        for metric in PER_REQUEST:
            if metric.key in bounds:
                seconds = (metric.bounded or metric.formula)(columns)
                good = good & (seconds <= bounds[metric.key] / 1e3)
                exceeded = exceeded | (seconds > bounds[metric.key] / 1e3)
        return good, exceeded

    def count(self, columns: Columns) -> tuple[int, int]:
        """Return how many requests are good, and how many are judged.

        All requests are judged except those that the client cancelled within every bound, which
        show neither.
        """
        good, judged, _ = self.totals(columns)
        return good, judged

    def totals(self, columns: Columns) -> tuple[int, int, int | None]:
        """Return what `count` does, and the output tokens of the good requests (None: unknown)."""
        good, exceeded = self.judge(columns)
        cancelled = columns.status == STATUSES["cancelled"]
        tokens = total(columns.output_tokens[good]) if good.any() else 0
        return int(good.sum()), int((~cancelled | exceeded).sum()), tokens
