"""What a run costs: replica-seconds times prices, over the tokens that met the SLO. Pure.

- A replica's price per hour is that of its resources by the spec (all of its engine workers), or
  its share of a node's price: the largest of its shares of the node's CPUs and GPUs.
- $ so far = replica-seconds held (busy, idle, starting, stopping, unknown;
`workbench.cost.replica_seconds`) x
  price per hour / 3600, plus energy where it has a price.
- $ per million tokens = $ so far / tokens of requests within the SLO x 1e6. A failed, refused or
  late request adds no tokens, and idle and starting replicas add dollars all the same.
- Blended: prompt and output tokens count alike. Split: an output token is taken to cost
  `output_weight` input tokens, so that an input token's price is $ / (input + weight x output), an
  output token's is weight times that, and both together give the dollars spent again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from serving.spec.base import Frozen
from serving.spec.service import EndpointSpec
from workbench.cost.prices import Prices, replica_prices
from workbench.cost.replica_seconds import (
    STATES,
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
    """What was held and what it cost; `model_dump` is the `cost` of `summary.json`.

    Absent is None: without a token within the SLO there is no price of one.
    """

    currency: Literal["$"] = "$"
    per_replica_hour: dict[str, float] = Field(description="$ an hour of a replica, by deployment.")
    replica_seconds: dict[str, dict[str, float]] = Field(description="By deployment and state.")
    busy_s: float = Field(description="Replica-seconds at work.")
    idle_s: float = Field(description="Replica-seconds without a request.")
    starting_s: float = Field(description="Replica-seconds before a replica could serve.")
    stopping_s: float = Field(description="Replica-seconds of ending.")
    unknown_s: float = Field(description="Replica-seconds held that nobody saw the use of.")
    held_s: float = Field(description="All of these: what is paid for.")
    energy_kwh: float | None = Field(description="Of the GPUs, where they report their power.")
    energy_dollars: float | None = Field(description="In `dollars`, if it has a price.")
    dollars: float = Field(description="$ so far.")
    dollars_per_hour: float = Field(description="$ per hour of what is held now, without energy.")
    good_requests: int = Field(description="Requests within the SLO.")
    input_tokens: int = Field(description="Prompt tokens of these.")
    output_tokens: int = Field(description="Output tokens of these.")
    output_weight: float = Field(description="Input tokens that an output token stands for.")
    per_million_tokens: float | None = Field(description="Blended: input and output alike.")
    per_million_input_tokens: float | None = Field(description="Split by `output_weight`.")
    per_million_output_tokens: float | None = Field(description="Split by `output_weight`.")


class CostMeter:
    """The cost while it grows: samples and ended requests in, a `Cost` out at any time.

    `per_replica_hour` is $ by deployment, from `replica_prices`; other deployments cost nothing.
    Every call takes constant time. Not for several threads at once.
    """

    def __init__(
        self, per_replica_hour: Mapping[str, float], prices: Prices, *, start_s: float = 0.0
    ) -> None:
        self._hour, self._prices = dict(per_replica_hour), prices
        self.ledger = ReplicaSecondsMeter(self._hour, start_s=start_s)
        self._requests, self._input, self._output = 0, 0, 0

    def see(self, sample: Sample) -> None:
        """A sample was taken."""
        self.ledger.see(sample)

    def good(self, input_tokens: int | None, output_tokens: int | None, requests: int = 1) -> None:
        """So many requests more ended within the SLO, with so many tokens."""
        self._requests += requests
        self._input += input_tokens or 0
        self._output += output_tokens or 0

    def now(self) -> Cost:
        """All so far."""
        return _cost(
            self.ledger, self._hour, self._prices, (self._requests, self._input, self._output)
        )


def cost_of(
    run: Run,
    spec: EndpointSpec,
    prices: Prices,
    *,
    slo: SLO | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Cost:
    """The cost of a saved run, from its `telemetry.jsonl` and `requests.jsonl`.

    Without an SLO every completed request counts as good. `start_s` and `end_s` cut both files;
    requests count in the window in which they were due. Raises SettingError for a missing price,
    RunError for a file that cannot be read.
    """
    per_hour = replica_prices(spec, prices)
    ledger = replica_seconds_of(run.samples(), per_hour, start_s=start_s, end_s=end_s)
    good = good_tokens(run.records(), slo, start_s=start_s, end_s=end_s)
    return _cost(ledger, per_hour, prices, good)


def good_tokens(
    records: Iterable[RequestRecord],
    slo: SLO | None,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> tuple[int, int, int]:
    """Requests within the SLO, their prompt tokens and their output tokens."""
    import numpy as np

    from workbench.metrics.columns import Columns, total

    columns = Columns.read(records)
    good = columns.met(slo)[0] if slo is not None else columns.status == 0
    good = good & (columns.due >= start_s) & (columns.due < (np.inf if end_s is None else end_s))
    return int(good.sum()), total(columns.prompt[good]) or 0, total(columns.output[good]) or 0


def with_cost(summary: Summary, cost: Cost) -> Summary:
    """`summary` with its `cost` filled in, for `Run.finish`."""
    return summary.model_copy(update={"cost": cost.model_dump(mode="json")})


def _cost(
    ledger: ReplicaSecondsMeter,
    per_hour: Mapping[str, float],
    prices: Prices,
    good: tuple[int, int, int],
) -> Cost:
    seconds = ledger.seconds()
    whole = sum(seconds.values(), ReplicaSeconds())
    energy = ledger.energy_kwh()
    kwh = prices.energy_kwh
    energy_dollars = None if energy is None or kwh is None else energy * kwh
    dollars = sum(one.held * per_hour[name] / 3600 for name, one in seconds.items())
    dollars += energy_dollars or 0.0
    requests, tokens_in, tokens_out = good
    weighted = tokens_in + prices.output_weight * tokens_out
    each: dict[str, Any] = {f"{state}_s": getattr(whole, state) for state in STATES}
    return Cost(
        per_replica_hour=dict(per_hour),
        replica_seconds={n: {s: getattr(one, s) for s in STATES} for n, one in seconds.items()},
        **each,
        held_s=whole.held,
        energy_kwh=energy,
        energy_dollars=energy_dollars,
        dollars=dollars,
        dollars_per_hour=sum(held * per_hour[name] for name, held in ledger.held().items()),
        good_requests=requests,
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        output_weight=prices.output_weight,
        per_million_tokens=_per_million(dollars, tokens_in + tokens_out),
        per_million_input_tokens=_per_million(dollars, weighted),
        per_million_output_tokens=_per_million(prices.output_weight * dollars, weighted),
    )


def _per_million(dollars: float, tokens: float) -> float | None:
    return dollars / tokens * 1e6 if tokens else None
