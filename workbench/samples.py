"""What is kept of the cluster at one moment: the lines of `telemetry.jsonl`, told apart by `kind`.

`time_s` is seconds on the run's clock. What a cluster does not tell is None, never 0, and a node
that did not answer gives no sample at all: a gap. Counters run since the start of what counts
them. `Run.samples(kind)` reads one kind back as a frame with these fields as columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, get_args

import msgspec

from workbench.errors import UnknownMetricError


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
