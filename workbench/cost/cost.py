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
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from serving.deploy.deployments import deployment_name
from serving.spec.guardrail import PresidioGuardrail
from serving.spec.pipeline import PipelineSpec
from serving.spec.service import EndpointSpec, ModelSpec, Strict
from workbench.cost.replica_seconds import STATES, Ledger, ReplicaSeconds, ledger_of
from workbench.errors import SettingError
from workbench.metrics.health import Frozen

if TYPE_CHECKING:
    from workbench.metrics.slo import SLO
    from workbench.metrics.summary import Summary
    from workbench.records import RequestRecord
    from workbench.runs.run import Run
    from workbench.samples import Sample

Dollars = Annotated[float, Field(ge=0)]


class NodePrice(Strict):
    """A node by the hour, whole: what a cloud's price list has."""

    hour: Dollars = Field(description="$ per hour of one node.")
    cpus: float = Field(gt=0, description="CPUs of such a node.")
    gpus: float = Field(0, ge=0, description="GPUs of such a node.")


class Prices(Strict):
    """$ per hour, by resource or by node. Give what your provider bills, and nothing twice."""

    gpu_hour: Dollars | None = Field(None, description="$ per hour of one GPU.")
    gpu_hour_by_type: dict[str, Dollars] = Field(
        default_factory=dict, description="The same by Ray's accelerator type, such as H100."
    )
    cpu_hour: Dollars | None = Field(None, description="$ per hour of one CPU.")
    node: NodePrice | None = Field(None, description="A whole node's price, in place of these.")
    energy_kwh: Dollars | None = Field(
        None, description="$ per kWh of the GPUs; leave it out where the hourly price has it in."
    )
    output_weight: float = Field(
        4, gt=0, description="Input tokens that one output token is taken to cost, in the split."
    )
    currency: Literal["$"] = Field("$", description="Dollars.")

    @model_validator(mode="after")
    def _says_something_once(self) -> Self:
        by_resource = [n for n in ("gpu_hour", "gpu_hour_by_type", "cpu_hour") if self._given(n)]
        if self.node and by_resource:
            raise ValueError(
                f"Prices.node and {', '.join(by_resource)} would bill the same twice; drop one"
            )
        if not self.node and not by_resource:
            raise ValueError("Prices has no price: give gpu_hour, cpu_hour or node")
        return self

    def _given(self, name: str) -> bool:
        return getattr(self, name) not in (None, {})

    def replica_hour(self, model: ModelSpec) -> float:
        """$ per hour of one replica of `model`. Raises SettingError for a price that is missing."""
        cpus = model.bundle["CPU"] * model.workers
        gpus = model.bundle.get("GPU", 0.0) * model.workers
        return self._of(cpus, gpus, model.model_id, model.accelerator_type)

    def cpus_hour(self, cpus: float, whose: str) -> float:
        """$ per hour of CPUs alone. Raises SettingError for a price that is missing."""
        return self._of(cpus, 0.0, whose)

    def _of(self, cpus: float, gpus: float, whose: str, kind: str | None = None) -> float:
        if self.node:
            if gpus and not self.node.gpus:
                raise SettingError(f"prices.node.gpus is 0, but {whose} runs on a GPU; give them")
            return self.node.hour * max(cpus / self.node.cpus, gpus and gpus / self.node.gpus)
        gpu_hour = self.gpu_hour_by_type.get(kind or "", self.gpu_hour)
        if gpus and gpu_hour is None:
            raise SettingError(
                f"prices.gpu_hour is missing, and {whose} runs on "
                f"{'a GPU' if kind is None else f'type {kind!r}'}; give it"
            )
        if not gpus and self.cpu_hour is None:
            raise SettingError(f"prices.cpu_hour is missing, and {whose} runs on CPUs; give it")
        return gpus * (gpu_hour or 0.0) + cpus * (self.cpu_hour or 0.0)


def replica_prices(spec: EndpointSpec, prices: Prices) -> dict[str, float]:
    """$ per hour of one replica, by deployment: every engine, and a pipeline's own stages.

    Raises SettingError for a price that is missing.
    """
    found = {deployment_name(model): prices.replica_hour(model) for model in spec.engines}
    if isinstance(spec, PipelineSpec):
        if isinstance(spec.guardrail, PresidioGuardrail):
            found["guardrail"] = prices.cpus_hour(spec.guardrail.num_cpus, "guardrail")
        if spec.router is not None:
            found["router"] = prices.cpus_hour(spec.router.num_cpus, "router")
    return found


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
        self.ledger = Ledger(self._hour, start_s=start_s)
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
    ledger = ledger_of(run.each_sample(), per_hour, start_s=start_s, end_s=end_s)
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
    ledger: Ledger, per_hour: Mapping[str, float], prices: Prices, good: tuple[int, int, int]
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
