"""The empty share of a KV cache, computed from the requests and compared with the engine.

A request with p prompt and o output tokens makes one token per step. After its k-th step it has
p + k tokens in the cache, so that over its life it uses o p + o (o + 1) / 2 token-steps. What is
held for it depends on the allocation:

- contiguous: `reserve` slots for all of its o steps, the longest that a request may become.
- padded batch: batches of `batch` requests in their order. Every row has the length of the longest
  so far, P + k with P the longest prompt of the batch, until the longest answer ends.
- paged: ceil((p + k) / block) blocks of `block` slots.

The waste is the share of held token-steps without a token of a running request. The terms are those
of Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention"
(2023), whose figure 2 measures the same share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from serving.engine.stats import CACHE_METRIC
from workbench.errors import SettingError
from workbench.telemetry.scrape import live_nodes

if TYPE_CHECKING:
    import pandas as pd

    from workbench.endpoints.deployed import Endpoint
    from workbench.records import RequestRecord
    from workbench.runs.run import Run

Lengths = Sequence[tuple[int, int]]
"""Prompt and output tokens of each request."""


@dataclass(frozen=True)
class KvCacheWaste:
    """Token-steps that an allocation holds, and those with a token in them."""

    allocation: str
    held: int
    used: int

    @property
    def share(self) -> float:
        """The share of what is held that is empty."""
        return 1 - self.used / self.held


def kv_cache_waste(lengths: Lengths, *, reserve: int, batch: int, block: int) -> list[KvCacheWaste]:
    """Return the waste of contiguous, padded and paged allocation for the same requests.

    Args:
        lengths: Prompt and output tokens of each request.
        reserve: Slots per request of contiguous allocation.
        batch: Requests per padded batch.
        block: Slots per block of paged allocation.

    Raises:
        SettingError: If there are no requests, or one is longer than `reserve`.
    """
    if not lengths:
        raise SettingError("lengths is empty: the waste of a KV cache needs at least one request")
    longest = max(p + o for p, o in lengths)
    if longest > reserve:
        raise SettingError(
            f"reserve must be at least {longest} (the longest request), got {reserve}"
        )
    used = sum(o * p + o * (o + 1) // 2 for p, o in lengths)
    return [
        KvCacheWaste(
            f"contiguous, {reserve} slots each", sum(o * reserve for _, o in lengths), used
        ),
        KvCacheWaste(f"padded batches of {batch}", _padded(lengths, batch), used),
        KvCacheWaste(
            f"paged, blocks of {block}", sum(_paged(p, o, block) for p, o in lengths), used
        ),
    ]


def _padded(lengths: Lengths, batch: int) -> int:
    held = 0
    for first in range(0, len(lengths), batch):
        rows = lengths[first : first + batch]
        longest, steps = max(p for p, _ in rows), max(o for _, o in rows)
        held += len(rows) * (steps * longest + steps * (steps + 1) // 2)
    return held


def _paged(prompt: int, output: int, block: int) -> int:
    tokens = prompt + np.arange(1, output + 1)
    return int((-(-tokens // block) * block).sum())


def request_lengths(records: Iterable[RequestRecord]) -> list[tuple[int, int]]:
    """Return the lengths of the completed requests as the server counted them, by sending time.

    The order in which they ended would put those of similar length into one batch.
    """
    in_order = sorted(records, key=lambda record: record.sent_s or 0.0)
    return [
        (record.prompt_tokens, record.output_tokens)
        for record in in_order
        if record.status == "ok" and record.prompt_tokens and record.output_tokens
    ]


def cache_at(records: Iterable[RequestRecord], times: Sequence[float], block: int) -> pd.DataFrame:
    """Return what the requests explain of the cache at each time.

    A request is in the cache from its first token to its end, with its prompt and the tokens so
    far; `slots` are those of its blocks. Columns: `time_s, requests, tokens, slots`.
    """
    import pandas as pd

    at = np.asarray(times, float)
    counts = {name: np.zeros(len(at), int) for name in ("requests", "tokens", "slots")}
    for record in records:
        if record.first_token_s is None or record.end_s is None or record.prompt_tokens is None:
            continue
        cached = (record.first_token_s <= at) & (at < record.end_s)
        tokens = record.prompt_tokens + np.searchsorted(record.token_times_s, at, side="right")
        counts["requests"] += cached
        counts["tokens"] += np.where(cached, tokens, 0)
        counts["slots"] += np.where(cached, -(-tokens // block) * block, 0)
    return pd.DataFrame({"time_s": at, **counts})


NULL_BLOCKS = 1  # vLLM reserves one block that no request gets


@dataclass(frozen=True)
class CacheSize:
    """The size of an engine's KV cache: blocks, and slots per block."""

    blocks: int
    block: int

    @property
    def slots(self) -> int:
        """The tokens that it can hold."""
        return self.blocks * self.block


def kv_cache_size(endpoint: Endpoint) -> CacheSize | None:
    """Return the size of an engine's cache from the nodes' metrics, None if none reports it.

    All replicas of a deployment have the same size. Only metrics of this endpoint's first
    deployment count, because other engines on the cluster report theirs, too.
    """
    import httpx
    import ray
    from prometheus_client.parser import text_string_to_metric_families

    for node in live_nodes(ray.nodes()):
        try:
            text = httpx.get(node.url, timeout=10, trust_env=False).content
        except httpx.HTTPError:
            continue
        lines = [line for line in text.decode().splitlines() if f"{CACHE_METRIC}{{" in line]
        for family in text_string_to_metric_families("\n".join([*lines, ""])):
            for sample in family.samples:
                if sample.labels.get("deployment") == endpoint.deployment:
                    return CacheSize(int(sample.value), int(sample.labels["block_size"]))
    return None


def kv_cache_frame(run: Run, size: CacheSize | None) -> pd.DataFrame:
    """Return each sample of the engine's cache with what the requests explain of it.

    Columns: `time_s`, the requests, tokens and slots of `cache_at`, `reported` (slots in use
    according to the engine) and `running` (requests in its batch). Samples of an idle engine are
    left out. The frame is empty if the run has no samples of an engine, or `size` is None.
    """
    if size is None:
        return cache_at([], [], 1).assign(reported=[], running=[])
    samples = run.samples_frame("replica").dropna(subset=["kv_cache_usage"])
    samples = samples[samples.running_requests.astype(float) > 0]
    frame = cache_at(list(run.records()), samples.time_s.tolist(), size.block)
    usable = (size.blocks - NULL_BLOCKS) * size.block
    frame["reported"] = (samples.kv_cache_usage.to_numpy(float) * usable).round()
    frame["running"] = samples.running_requests.to_numpy(float)
    return frame


def kv_cache_summary(frame: pd.DataFrame) -> str:
    """Return in one line how well the engine and the requests agree, over all busy samples."""
    both = frame[(frame.slots > 0) & (frame.reported > 0)]
    if both.empty:
        return "The engine reported no cache usage while requests were running."
    ratio = float(both.reported.sum() / both.slots.sum())
    empty = 1 - both.tokens.sum() / both.reported.sum()
    return (
        f"over {len(both)} samples the engine reports {ratio:.2f} times the slots that the "
        f"requests explain; {empty:.0%} of what it holds is empty"
    )


def engine_peaks(samples: pd.DataFrame) -> dict[str, float | None]:
    """Return peak KV-cache usage (a share), peak batch and preemptions; None if unknown."""

    def peak(column: str) -> float | None:
        values = samples[column].astype("float64").dropna()
        return None if values.empty else float(values.max())

    counter = samples["preemptions"].astype("float64").dropna()
    preemptions = None if counter.empty else float(counter.max() - counter.min())
    return {
        "peak_kv_cache": peak("kv_cache_usage"),
        "peak_batch": peak("running_requests"),
        "preemptions": preemptions,
    }
