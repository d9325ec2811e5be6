"""The cost of a run: replica-seconds times prices, per token that met the SLO. Pure.

- The price of a replica per hour is that of its resources in the specification (all of its engine
  workers), or its share of a node's price: the larger of its shares of the node's CPUs and GPUs.
- dollars = replica-seconds held (busy, idle, starting, stopping, unknown; see
  `workbench.cost.replica_seconds`) x price per hour / 3600, plus energy if it has a price.
- dollars per million tokens = dollars / tokens of requests within the SLO x 1e6. A failed, shed or
  late request adds no tokens. Idle and starting replicas add dollars too.
- Blended: prompt and output tokens count alike. Split: an output token costs as much as
  `output_weight` input tokens. An input token costs dollars / (input + weight x output), an output
  token `weight` times that. Both together give the dollars spent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from serving.spec.base import Frozen
from serving.spec.service import EndpointSpec
from workbench.cost.prices import Prices
from workbench.cost.replica_seconds import (
    COST_STATES,
    ReplicaSeconds,
    ReplicaSecondsMeter,
    replica_seconds_of,
)

if TYPE_CHECKING:
    from workbench.metrics.slo import SLO
    from workbench.metrics.summary import Summary
    from workbench.records import RequestRecord, Sample
    from workbench.runs.run import Run


class Cost(Frozen):
    """The replica-seconds of a run and their cost. `model_dump` is the `cost` of `summary.json`.

    Prices per token are None if no token met the SLO.
    """

    currency: Literal["$"] = "$"
    per_replica_hour: dict[str, float] = Field(description="$ per replica-hour, by deployment.")
    replica_seconds: dict[str, dict[str, float]] = Field(
        description="Replica-seconds by deployment and state."
    )
    busy_s: float = Field(description="Replica-seconds with a request.")
    idle_s: float = Field(description="Replica-seconds without a request.")
    starting_s: float = Field(description="Replica-seconds before a replica could serve.")
    stopping_s: float = Field(description="Replica-seconds while a replica stopped.")
    unknown_s: float = Field(description="Replica-seconds held in an unknown state.")
    held_s: float = Field(description="Replica-seconds in any state, which are billed.")
    energy_kwh: float | None = Field(
        description="Energy of the GPUs in kWh, if they report their power."
    )
    energy_dollars: float | None = Field(
        description="Cost of the energy in $, included in `dollars`; None without a price."
    )
    dollars: float = Field(description="Total cost in $.")
    dollars_per_hour: float = Field(
        description="$ per hour of the replicas held now, without energy."
    )
    good_requests: int = Field(description="Number of requests within the SLO.")
    input_tokens: int = Field(description="Prompt tokens of the requests within the SLO.")
    output_tokens: int = Field(description="Output tokens of the requests within the SLO.")
    output_weight: float = Field(
        description="Weight of an output token relative to an input token."
    )
    per_million_tokens: float | None = Field(
        description="$ per million tokens, input and output weighted equally."
    )
    per_million_input_tokens: float | None = Field(
        description="$ per million input tokens, split by `output_weight`."
    )
    per_million_output_tokens: float | None = Field(
        description="$ per million output tokens, split by `output_weight`."
    )


class GoodTokens(NamedTuple):
    """Requests within the SLO, and their tokens."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class CostMeter:
    """The cost so far, from samples and ended requests. Not thread-safe.

    Every call takes constant time.

    Args:
        per_replica_hour: $ per replica-hour by deployment, from `Prices.per_replica_hour`. Other
            deployments cost nothing.
        prices: The prices of energy and of output tokens.
        start_s: Seconds on the run's clock; nothing counts before.
    """

    def __init__(
        self, per_replica_hour: Mapping[str, float], prices: Prices, *, start_s: float = 0.0
    ) -> None:
        self._per_hour, self._prices = dict(per_replica_hour), prices
        self._replica_seconds = ReplicaSecondsMeter(self._per_hour, start_s=start_s)
        self._good = GoodTokens()

    def observe(self, sample: Sample) -> None:
        """Count up to this sample."""
        self._replica_seconds.observe(sample)

    def add_tokens(self, good: GoodTokens) -> None:
        """Count requests that ended within the SLO."""
        self._good = GoodTokens(*(a + b for a, b in zip(self._good, good, strict=True)))

    def now(self) -> Cost:
        """Return the cost up to the last sample."""
        return _cost(self._replica_seconds, self._per_hour, self._prices, self._good)


def cost_of(
    run: Run,
    spec: EndpointSpec,
    prices: Prices,
    *,
    slo: SLO | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Cost:
    """Return the cost of a saved run, from its `telemetry.jsonl` and `requests.jsonl`.

    Args:
        run: The run.
        spec: The deployed specification.
        prices: Its prices.
        slo: The SLO that tokens must meet. Without it, every completed request counts.
        start_s: Start of the window that counts, in seconds on the run's clock.
        end_s: End of the window. A request belongs to the window in which it was due.

    Raises:
        SettingError: If a price is missing.
        RunError: If a file cannot be read.
    """
    per_hour = prices.per_replica_hour(spec)
    meter = replica_seconds_of(run.samples(), per_hour, start_s=start_s, end_s=end_s)
    good = tokens_within_slo(run.records(), slo, start_s=start_s, end_s=end_s)
    return _cost(meter, per_hour, prices, good)


def tokens_within_slo(
    records: Iterable[RequestRecord],
    slo: SLO | None,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> GoodTokens:
    """Return the requests within the SLO that were due in a window, and their tokens.

    Without an SLO, every completed request counts.
    """
    import numpy as np

    from workbench.metrics.columns import Columns, total

    columns = Columns.read(records)
    good = columns.ok if slo is None else slo.judge(columns)[0]
    end = np.inf if end_s is None else end_s
    good = good & (columns.due_s >= start_s) & (columns.due_s < end)
    input_tokens, output_tokens = columns.prompt_tokens[good], columns.output_tokens[good]
    return GoodTokens(int(good.sum()), total(input_tokens) or 0, total(output_tokens) or 0)


def with_cost(summary: Summary, cost: Cost) -> Summary:
    """Return `summary` with its `cost`, for `Run.finish`."""
    return summary.model_copy(update={"cost": cost.model_dump(mode="json")})


def _cost(
    meter: ReplicaSecondsMeter, per_hour: Mapping[str, float], prices: Prices, good: GoodTokens
) -> Cost:
    seconds = meter.seconds()
    whole = sum(seconds.values(), ReplicaSeconds())
    energy_kwh = meter.energy_kwh()
    energy_dollars = (
        None if energy_kwh is None or prices.energy_kwh is None else energy_kwh * prices.energy_kwh
    )
    dollars = sum(held.total * per_hour[name] / 3600 for name, held in seconds.items())
    dollars += energy_dollars or 0.0
    weighted = good.input_tokens + prices.output_weight * good.output_tokens
    states: dict[str, Any] = {f"{state}_s": getattr(whole, state) for state in COST_STATES}
    return Cost(
        per_replica_hour=dict(per_hour),
        replica_seconds={name: asdict(held) for name, held in seconds.items()},
        **states,
        held_s=whole.total,
        energy_kwh=energy_kwh,
        energy_dollars=energy_dollars,
        dollars=dollars,
        dollars_per_hour=sum(n * per_hour[name] for name, n in meter.replicas().items()),
        good_requests=good.requests,
        input_tokens=good.input_tokens,
        output_tokens=good.output_tokens,
        output_weight=prices.output_weight,
        per_million_tokens=_per_million(dollars, good.input_tokens + good.output_tokens),
        per_million_input_tokens=_per_million(dollars, weighted),
        per_million_output_tokens=_per_million(prices.output_weight * dollars, weighted),
    )


def _per_million(dollars: float, tokens: float) -> float | None:
    return dollars / tokens * 1e6 if tokens else None
