"""What is kept of one request: the line that every figure is computed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import msgspec

from workbench.errors import UnknownMetricError

Status = Literal["ok", "error", "shed", "timeout", "cancelled"]


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What the client saw of one request. Times are seconds on the run's clock; absent is None.

    `scheduled_s` is when it should have been sent, `sent_s` when it was (before the request is
    built, as in `vllm bench serve`), `token_times_s` the arrival of every token event, the first
    included, and `end_s` the arrival of the last event before `[DONE]`, or when it failed.
    `model` is the one that answered, where a router chose and said so. Token counts are the
    server's own (`usage`), as is `stages`: milliseconds in each stage of its work (authentication,
    guardrail_in, route, queue, prefill, decode, guardrail_out), where told.
    `replica` is the one that answered, by Serve's replica id; None where no answer says so.
    """

    request_id: str
    scheduled_s: float | None
    sent_s: float | None
    first_token_s: float | None
    end_s: float | None
    token_times_s: tuple[float, ...]
    prompt_tokens: int | None
    output_tokens: int | None
    status: Status
    error: str | None
    model: str | None
    tenant: str | None
    stages: dict[str, float | None] | None = None
    replica: str | None = None


What = Literal[
    "start", "rate", "burstiness", "output_tokens", "pause", "resume", "late", "scaling", "end"
]


@dataclass(frozen=True, slots=True)
class LoadChange:
    """A line of `load.jsonl`: from `time_s` on (seconds on the run's clock), `what` is `value`.

    `start` has the `load` as planned, `burstiness` None for even gaps, and `late` how many requests
    were left out because the client could not send them in time. `note` says what a reader must
    know: why a rate is not the one that was asked for, why the load ended early.
    """

    time_s: float
    what: What
    value: float | None = None
    note: str | None = None
    load: Mapping[str, Any] | None = None


def due(record: RequestRecord) -> float:
    """When a request was due: as scheduled, else when it was sent."""
    return record.scheduled_s if record.scheduled_s is not None else record.sent_s or 0.0


class Sampled(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What every sample has."""

    time_s: float


class DeploymentSample(Sampled, frozen=True, kw_only=True, tag="deployment"):
    """One deployment's replicas, and what Serve's autoscaler saw of it.

    `target` is what Serve aims at, after delays and bounds; `desired` what the policy asks for
    before them. `total_requests` is the count that Serve's autoscaler goes by, a mean over its
    look-back, of requests in progress and waiting.
    `queued_requests` is all that waits now: in Serve's handles, at our gates, in the engines.
    `shed` counts the requests that gates of ours refused since the run's start.
    """

    deployment: str
    target: int | None = None
    running: int | None = None
    starting: int | None = None
    stopping: int | None = None
    desired: int | None = None
    total_requests: float | None = None
    queued_requests: float | None = None
    shed: int | None = None


class ReplicaSample(Sampled, frozen=True, kw_only=True, tag="replica"):
    """One engine by its own account. `replica` is Serve's replica id, `node` Ray's node id.

    `state` is Serve's (running, starting, stopping); before it runs, there are no figures yet.
    `running_requests` are in the engine's batch and `waiting_requests` are not yet;
    `kv_cache_usage` is a share from 0 to 1. The rest are counters since the engine's start: tokens
    looked up in the prefix cache and found there, preemptions, tokens read and written.
    """

    deployment: str
    replica: str
    node: str
    state: str | None = None
    running_requests: int | None = None
    waiting_requests: int | None = None
    kv_cache_usage: float | None = None
    prefix_queries: int | None = None
    prefix_hits: int | None = None
    preemptions: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None


class GpuSample(Sampled, frozen=True, kw_only=True, tag="gpu"):
    """One card: `gpu` is its index on the node, `utilization` from 0 to 1, `power_w` in watts."""

    node: str
    gpu: int
    utilization: float | None = None
    memory_gib: float | None = None
    power_w: float | None = None


class ProxySample(Sampled, frozen=True, kw_only=True, tag="proxy"):
    """One node's HTTP proxy: requests it holds now, and those refused behind it so far."""

    node: str
    in_flight: int | None = None
    shed: int | None = None


class DecisionSample(Sampled, frozen=True, kw_only=True, tag="decision"):
    """A change of a deployment's target: what the policy asked for and saw, and what held it back.

    `wanted_s` is when the policy first asked for a change this way, `held_by` the delay that stood
    between and the bound that cut it short, by Serve's own names, and `saw` the figures the policy
    went by, by name.
    """

    deployment: str
    from_target: int
    to_target: int
    desired: int | None = None
    total_requests: float | None = None
    held_by: str | None = None
    wanted_s: float | None = None
    saw: dict[str, float] | None = None


Sample: TypeAlias = DeploymentSample | ReplicaSample | GpuSample | ProxySample | DecisionSample


Sink = Callable[[Sample], None]


KINDS: dict[str, type[Sampled]] = {str(one.__struct_config__.tag): one for one in get_args(Sample)}


def columns(kind: str) -> list[str]:
    """The columns of a kind's frame, in order.

    Raises UnknownMetricError for a kind that does not exist.
    """
    if kind not in KINDS:
        raise UnknownMetricError(f"kind = {kind!r}: the samples are of {', '.join(KINDS)}")
    return list(KINDS[kind].__struct_fields__)


def line(sample: Sample) -> dict[str, Any]:
    """The sample as its line in `telemetry.jsonl`, `kind` first."""
    fields: dict[str, Any] = msgspec.to_builtins(sample)
    return fields


def read(fields: dict[str, Any]) -> Sample:
    """The sample that a line of `telemetry.jsonl` is. One without a kind is a deployment's.

    Raises msgspec.ValidationError for a line that is none.
    """
    sample: Sample = msgspec.convert({"kind": "deployment", **fields}, Sample)
    return sample
