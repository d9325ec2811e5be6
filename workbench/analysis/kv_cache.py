"""What a KV cache holds and what of it is empty, worked out from the requests alone. Pure.

A request of p prompt and o output tokens makes one token a step; after its k-th it has p + k tokens
in the cache, so that over its life it uses o p + o (o + 1) / 2 token-steps. What is held for it
depends on who gives out the memory:

- contiguous: `reserve` slots for all of its o steps, the longest that a request may become.
- padded batch: batches of `batch` requests in their order. Every row has the length of the longest
  so far, P + k with P the longest prompt of the batch, until the longest answer has ended.
- paged: ceil((p + k) / block) blocks of `block` slots.

The waste is the share of held token-steps without a token of a request at work. The terms are those
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
    """Token-steps that one way of giving out memory holds, and those with a token in them."""

    way: str
    held: int
    used: int

    @property
    def share(self) -> float:
        """The wasted share of what is held."""
        return 1 - self.used / self.held


def kv_cache_waste(lengths: Lengths, *, reserve: int, batch: int, block: int) -> list[KvCacheWaste]:
    """Contiguous, padded and paged, for the same requests.

    Raises SettingError for no requests, and for one that is longer than `reserve`.
    """
    if not lengths:
        raise SettingError("there are no requests: their KV cache has no waste to speak of")
    longest = max(p + o for p, o in lengths)
    if longest > reserve:
        raise SettingError(f"reserve is {reserve}, but a request has {longest} tokens: raise it")
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
    """The lengths of the completed requests, by the server's own count, as they were sent.

    The order in which they ended would put those of one length into one batch.
    """
    sent = sorted(records, key=lambda one: one.sent_s or 0.0)
    return [
        (one.prompt_tokens, one.output_tokens)
        for one in sent
        if one.status == "ok" and one.prompt_tokens and one.output_tokens
    ]


def cache_at(records: Iterable[RequestRecord], times: Sequence[float], block: int) -> pd.DataFrame:
    """What the client knows of the cache: at each time the requests in it, their tokens and slots.

    A request is in the cache from its first token to its end, with its prompt and the tokens that
    have come; `slots` are those of its blocks. Columns `time_s, requests, tokens, slots`.
    """
    import pandas as pd

    at = np.asarray(times, float)
    found = {name: np.zeros(len(at), int) for name in ("requests", "tokens", "slots")}
    for one in records:
        if one.first_token_s is None or one.end_s is None or one.prompt_tokens is None:
            continue
        here = (one.first_token_s <= at) & (at < one.end_s)
        tokens = one.prompt_tokens + np.searchsorted(one.token_times_s, at, side="right")
        found["requests"] += here
        found["tokens"] += np.where(here, tokens, 0)
        found["slots"] += np.where(here, -(-tokens // block) * block, 0)
    return pd.DataFrame({"time_s": at, **found})


NULL_BLOCKS = 1  # vLLM keeps one block that nobody gets


@dataclass(frozen=True)
class CacheSize:
    """An engine's KV cache: its blocks, and the tokens of each."""

    blocks: int
    block: int

    @property
    def slots(self) -> int:
        """Tokens that it holds."""
        return self.blocks * self.block


def kv_cache_size(endpoint: Endpoint) -> CacheSize | None:
    """The engine's cache, from the nodes' metrics; None where no node tells of one.

    All replicas of a deployment have the same. Another model's engine on the same cluster tells of
    its own: only lines of this endpoint's first deployment count.
    """
    import httpx
    import ray
    from prometheus_client.parser import text_string_to_metric_families

    for node in live_nodes(ray.nodes()):
        try:
            text = httpx.get(node.url, timeout=10, trust_env=False).content
        except httpx.HTTPError:
            continue
        lines = [one for one in text.decode().splitlines() if f"{CACHE_METRIC}{{" in one]
        for family in text_string_to_metric_families("\n".join([*lines, ""])):
            for sample in family.samples:
                if sample.labels.get("deployment") == endpoint.deployment:
                    return CacheSize(int(sample.value), int(sample.labels["block_size"]))
    return None


def kv_cache_frame(run: Run, size: CacheSize | None) -> pd.DataFrame:
    """Each sample of the engine beside the client's own count at that moment.

    Columns: `time_s`, the requests, tokens and slots of `cache_at`, `reported` (slots in use by
    the engine's account) and `running` (requests in its batch). Samples of an idle engine are left
    out. Empty where the run has no samples of an engine, or its cache's size is not known.
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
    """How well the two agree, in a line; the samples of a run are its busy seconds."""
    both = frame[(frame.slots > 0) & (frame.reported > 0)]
    if both.empty:
        return "The engine gave no account of its cache while requests were at work."
    ratio = float((both.reported.sum()) / both.slots.sum())
    empty = 1 - both.tokens.sum() / both.reported.sum()
    return (
        f"over {len(both)} samples the engine reports {ratio:.2f} times the slots that the "
        f"requests explain; {empty:.0%} of what it holds is empty"
    )


def engine_peaks(samples: pd.DataFrame) -> dict[str, float | None]:
    """Peak KV cache (a share), peak batch, and preemptions of one side; None where unknown."""

    def peak(column: str) -> float | None:
        values = samples[column].astype("float64").dropna()
        return None if values.empty else float(values.max())

    counted = samples["preemptions"].astype("float64").dropna()
    grown = None if counted.empty else float(counted.max() - counted.min())
    return {
        "peak_kv_cache": peak("kv_cache_usage"),
        "peak_batch": peak("running_requests"),
        "preemptions": grown,
    }
