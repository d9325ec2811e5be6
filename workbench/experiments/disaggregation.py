"""Prefill and decode on separate replicas, compared with as many replicas that do both.

Both variants get the same open-loop loads of long prompts. They run one after the other, because
each needs all cards. `workbench.analysis.disaggregation` compares their runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from serving.spec.base import Strict
from serving.spec.disaggregated import STORAGE, Disaggregated, Side
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec
from workbench.records import ReplicaSample, Sample
from workbench.workload.arrivals import Poisson, Rate, Seconds
from workbench.workload.prompts import RandomPrompts
from workbench.workload.spec import LoadSpec

MAX_ONGOING_REQUESTS = 256
"""Of each replica, so that requests wait in the engines rather than in front of them."""


class PlannedLoad(NamedTuple):
    """A load, its rate in requests/s, and the number of its repeat, from 1 on."""

    rate: float
    repeat: int
    load: LoadSpec


class DisaggregationTrial(Strict):
    """The loads that both variants get, and the replicas that each of them has."""

    rates: tuple[Rate, ...] = Field(
        min_length=1, description="Requests/s for all replicas together, one load after another."
    )
    input_tokens: int = Field(512, ge=1, description="Tokens of a prompt.")
    output_tokens: int = Field(32, ge=2, description="Tokens of an answer, at least 2 for TPOT.")
    duration_s: Seconds = Field(20, description="Seconds of each load.")
    repeats: int = Field(1, ge=1, description="Loads at each rate; intervals need at least 3.")
    replicas: int = Field(
        2, ge=2, multiple_of=2, description="Replicas of each variant, an even number."
    )
    max_model_len: int = Field(1024, ge=16, description="Context of the model in tokens.")
    connector: Literal["nixl", "lmcache", "example"] = Field(
        "example", description="What moves the KV cache, as in `Disaggregated`."
    )
    connector_options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the connector, as in `Disaggregated`."
    )

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        tokens = self.input_tokens + self.output_tokens
        if tokens > self.max_model_len:
            raise ValueError(
                f"input_tokens + output_tokens must be at most max_model_len = "
                f"{self.max_model_len}, got {tokens}; shorten them or raise max_model_len"
            )
        return self

    def models(self, model: ModelSpec, folder: str | Path) -> dict[str, ModelSpec]:
        """Return the model of each variant, by its name, in the order in which to deploy them.

        `colocated` is first, because replicas that already run `model` can stay. Each of its
        replicas does both tasks. Half of the replicas of `split` are for prefill, the others for
        decode.

        Args:
            model: What both variants have in common; its own scaling is not used.
            folder: Where the connector `example` leaves its files, unless `connector_options`
                name another folder. Every replica must be able to write to it.
        """
        options = self.connector_options
        if self.connector == "example":
            options = {STORAGE: str(folder)} | options
        half = Side(scaling=_fixed(self.replicas // 2))
        split = Disaggregated(
            prefill=half, decode=half, connector=self.connector, connector_options=options
        )
        shared = model.model_dump(exclude={"scaling"}, exclude_unset=True)
        shared["max_model_len"] = self.max_model_len
        return {
            "colocated": ModelSpec(**shared, scaling=_fixed(self.replicas)),
            "split": ModelSpec(**shared, disaggregated=split),
        }

    def load(self, rate: float, seed: int) -> LoadSpec:
        """Return the load at `rate` requests/s."""
        return LoadSpec(
            arrivals=Poisson(rate=rate),
            prompts=RandomPrompts(input=self.input_tokens, output=self.output_tokens),
            duration_s=self.duration_s,
            seed=seed,
        )

    def loads(self, seed: int) -> Iterator[PlannedLoad]:
        """Yield the loads of one variant in order, with seeds from `seed` on.

        No two of them have the same prompts, which would be found in the prefix cache.
        """
        planned = [(rate, repeat) for rate in self.rates for repeat in range(1, self.repeats + 1)]
        for number, (rate, repeat) in enumerate(planned):
            yield PlannedLoad(rate, repeat, self.load(rate, seed + number))


def _fixed(replicas: int) -> ScalingSpec:
    return ScalingSpec(
        min_replicas=replicas,
        max_replicas=replicas,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
    )


class KVTransfers(NamedTuple):
    """Transfers of KV blocks between replicas: their number, seconds and bytes together."""

    transfers: int
    seconds: float
    size_bytes: int

    @property
    def mean_ms(self) -> float:
        """Mean duration of a transfer in milliseconds."""
        return self.seconds / self.transfers * 1e3

    @property
    def mean_mib(self) -> float:
        """Mean size of a transfer in MiB."""
        return self.size_bytes / self.transfers / 2**20


def kv_transfers(samples: Iterable[Sample]) -> KVTransfers | None:
    """Return the transfers that replicas reported between their first and last sample.

    Engines count from their start, and report nothing before the first transfer. The reports are
    a few seconds old, so that the last transfers of a load may be missing.

    Returns:
        The sum over all replicas; None if no transfer was reported.
    """
    first: dict[str, ReplicaSample] = {}
    last: dict[str, ReplicaSample] = {}
    for sample in samples:
        if isinstance(sample, ReplicaSample) and sample.prompt_tokens is not None:
            first.setdefault(sample.replica, sample)
            last[sample.replica] = sample
    pairs = [(first[replica], last[replica]) for replica in last]
    total = KVTransfers(
        sum((b.kv_transfers or 0) - (a.kv_transfers or 0) for a, b in pairs),
        sum((b.kv_transfer_s or 0.0) - (a.kv_transfer_s or 0.0) for a, b in pairs),
        sum((b.kv_transfer_bytes or 0) - (a.kv_transfer_bytes or 0) for a, b in pairs),
    )
    return total if total.transfers else None
