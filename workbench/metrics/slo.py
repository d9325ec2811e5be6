"""What a good request is: bounds on its latencies, and how many requests must meet them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.spec.base import explain
from workbench.errors import SettingError, UnknownMetricError


class SLO(BaseModel):
    """Upper bounds in ms that a good request meets all of, and the share that must be good.

    Raises UnknownMetricError for a name that is no metric, SettingError for a value that is no
    bound.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttft_ms: float | None = Field(None, gt=0, description="Send to first token.")
    tpot_ms: float | None = Field(None, gt=0, description="Mean time per further token.")
    e2el_ms: float | None = Field(None, gt=0, description="Send to the end.")
    ttft_from_schedule_ms: float | None = Field(None, gt=0, description="TTFT, from schedule.")
    e2el_from_schedule_ms: float | None = Field(None, gt=0, description="E2EL, from schedule.")
    target: float = Field(0.99, gt=0, le=1, description="Share of requests that must be good.")

    def __init__(self, **bounds: Any) -> None:
        try:
            super().__init__(**bounds)
        except ValidationError as problem:
            unknown = any(item["type"] == "extra_forbidden" for item in problem.errors())
            kind = UnknownMetricError if unknown else SettingError
            raise kind(explain(problem, type(self))) from None
        if not self.bounds():
            known = ", ".join(name for name in type(self).model_fields if name != "target")
            raise SettingError(f"SLO has no bound: give at least one of {known}")

    def bounds(self) -> dict[str, float]:
        """The given bounds in ms: `ttft_ms` and so on to its value."""
        return self.model_dump(exclude={"target"}, exclude_none=True)
