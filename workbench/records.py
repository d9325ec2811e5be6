"""The records of a run: its requests, the changes of its load, and samples of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import msgspec

from serving.engine.warmup import WARM_UP_TOKENS
from workbench.errors import UnknownMetricError

Status = Literal["ok", "error", "shed", "timeout", "cancelled"]


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request as the client saw it. Times are seconds on the run's clock; absent is None.

    Attributes:
        request_id: Also sent to the server, as `x-request-id`.
        scheduled_s: When the request should have been sent.
        sent_s: When it was sent (before the request is built, as in `vllm bench serve`).
        first_token_s: Arrival of the first token event.
        end_s: Arrival of the last event before `[DONE]`, or when the request failed.
        token_times_s: Arrival of every token event, including the first.
        prompt_tokens: The server's own count (`usage`).
        output_tokens: The server's own count (`usage`).
        status: How the request ended.
        error: Why it failed.
        model: The model that answered, where a router reports its choice.
        tenant: Whose request it was.
        stages: Milliseconds in each stage of the server's work (authentication, guardrail_in,
            route, queue, prefill, decode, guardrail_out), where reported.
        replica: Serve's id of the replica that answered, where reported.
        cached_tokens: Tokens of the prompt that were in the prefix cache, where the server reports
            them in `usage` (vLLM does with `enable_prompt_tokens_details`).
        note: What was irregular about a stream that counts as complete.
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
    cached_tokens: int | None = None
    note: str | None = None

    @property
    def due_s(self) -> float:
        """When the request was due: as scheduled, else when it was sent."""
        return self.scheduled_s if self.scheduled_s is not None else self.sent_s or 0.0


ChangeKind = Literal[
    "start", "rate", "burstiness", "output_tokens", "pause", "resume", "late", "scaling", "end"
]


@dataclass(frozen=True, slots=True)
class LoadChange:
    """A line of `load.jsonl`: a change of a live load.

    Attributes:
        time_s: From when on it applies, in seconds on the run's clock.
        what: What changed. `late` counts the requests that the client could not send in time and
            dropped.
        value: The new value; a `burstiness` of None means even gaps.
        note: Why a rate is not the one that was requested, or why the load ended early.
        load: The load as planned, in a `start`.
    """

    time_s: float
    what: ChangeKind
    value: float | None = None
    note: str | None = None
    load: Mapping[str, Any] | None = None


class SampleBase(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """The base of all samples: the time, in seconds on the run's clock."""

    time_s: float


class DeploymentSample(SampleBase, frozen=True, kw_only=True, tag="deployment"):
    """The replicas of one deployment, and what Serve's autoscaler saw of it.

    Attributes:
        deployment: Serve's name of the deployment.
        target: Number of replicas that Serve aims at, after delays and bounds.
        running: Replicas that run.
        starting: Replicas that start.
        stopping: Replicas that stop.
        desired: Number of replicas that the policy requests, before delays and bounds.
        total_requests: Requests in progress and waiting, as Serve's autoscaler counts them: a mean
            over its look-back period.
        queued_requests: All requests that wait now: in Serve's handles, at gates, in engines.
        shed: Requests that gates refused since the start of the run.
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


class ReplicaSample(SampleBase, frozen=True, kw_only=True, tag="replica"):
    """The metrics that one engine reports.

    Attributes:
        deployment: Serve's name of the deployment.
        replica: Serve's id of the replica.
        node: Ray's id of the node.
        state: Serve's state (running, starting, stopping). Before it runs there are no metrics.
        running_requests: Requests in the engine's batch.
        waiting_requests: Requests that are not in it yet.
        kv_cache_usage: Used part of the KV cache, from 0 to 1.
        prefix_queries: Tokens looked up in the prefix cache since the engine started.
        prefix_hits: Tokens found there since the engine started.
        preemptions: Preemptions since the engine started.
        prompt_tokens: Tokens read since the engine started.
        output_tokens: Tokens generated since the engine started.
        kv_transfers: Transfers of KV blocks from other replicas since the engine started.
        kv_transfer_s: Seconds that these transfers took together.
        kv_transfer_bytes: Bytes that they moved.
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
    kv_transfers: int | None = None
    kv_transfer_s: float | None = None
    kv_transfer_bytes: int | None = None

    @property
    def has_served(self) -> bool:
        """Whether it has generated tokens for a request, besides those of its warm-up."""
        return (self.output_tokens or 0) > WARM_UP_TOKENS


class GpuSample(SampleBase, frozen=True, kw_only=True, tag="gpu"):
    """One GPU: its index on the node, its utilization from 0 to 1, its power in watts."""

    node: str
    gpu: int
    utilization: float | None = None
    memory_gib: float | None = None
    power_w: float | None = None


class ProxySample(SampleBase, frozen=True, kw_only=True, tag="proxy"):
    """The HTTP proxy of one node: requests in progress, and requests refused behind it so far."""

    node: str
    in_flight: int | None = None
    shed: int | None = None


class DecisionSample(SampleBase, frozen=True, kw_only=True, tag="decision"):
    """A change of a deployment's target, and why it came when it did.

    Attributes:
        deployment: Serve's name of the deployment.
        from_target: Number of replicas before.
        to_target: Number of replicas after.
        desired: Number of replicas that the policy requested.
        total_requests: Requests in progress and waiting, as Serve's autoscaler counts them.
        held_by: The delay that held the change back and the bound that limited it, by Serve's
            names.
        wanted_s: When the policy first requested a change in this direction.
        saw: The metrics that the policy used, by name.
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

SAMPLE_KINDS: dict[str, type[SampleBase]] = {
    str(sample.__struct_config__.tag): sample for sample in get_args(Sample)
}
"""The class of each kind of sample."""


def columns(kind: str) -> list[str]:
    """Return the columns of the data frame of a kind of sample, in order.

    Raises:
        UnknownMetricError: There is no such kind.
    """
    if kind not in SAMPLE_KINDS:
        raise UnknownMetricError(
            f"kind of sample must be one of {', '.join(SAMPLE_KINDS)}, got {kind!r}"
        )
    return list(SAMPLE_KINDS[kind].__struct_fields__)


def to_line(sample: Sample) -> dict[str, Any]:
    """Return a sample as its line in `telemetry.jsonl`, `kind` first."""
    fields: dict[str, Any] = msgspec.to_builtins(sample)
    return fields


def from_line(fields: Mapping[str, Any]) -> Sample:
    """Return the sample in a line of `telemetry.jsonl`. A line without a kind is a deployment's.

    Raises:
        msgspec.ValidationError: The line is not a sample.
    """
    sample: Sample = msgspec.convert({"kind": "deployment", **fields}, Sample, strict=False)
    return sample
