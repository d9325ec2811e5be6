"""The prefix-cache hits of a real engine on a trace, against those computed from its hash ids."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from workbench.analysis.kv_cache import kv_cache_size
from workbench.endpoints.deployed import Endpoint
from workbench.records import ReplicaSample, Sample
from workbench.telemetry.sampler import Telemetry
from workbench.workload.arrivals import TraceReplay
from workbench.workload.prefix_cache import prefix_hits
from workbench.workload.prompts import TracePrompts
from workbench.workload.spec import LoadSpec, make_plan
from workbench.workload.tokenizer import load_tokenizer
from workbench.workload.traces import replay_trace

pytestmark = pytest.mark.engine

REQUESTS = 30
BLOCK = 64


def write_trace(file: Path, block: int) -> None:
    """Prompts of one to twelve blocks from four families that share their beginnings."""
    rng = np.random.default_rng(5)
    lines = []
    for number in range(REQUESTS):
        family, length = int(rng.integers(4)), int(rng.integers(1, 13))
        own = int(rng.integers(0, length + 1))
        ids = [100 * family + i for i in range(own)]
        ids += [10_000 + 10 * number + i for i in range(length - own)]
        fields = {"timestamp": number, "output_length": 1, "hash_ids": ids}
        lines.append(
            json.dumps(fields | {"input_length": length * block - int(rng.integers(block))})
        )
    file.write_text("\n".join(lines))


def counters(endpoint: Endpoint) -> tuple[int, int]:
    """Return the engine's prefix-cache queries and hits, in tokens, once nothing changes them."""
    samples: list[Sample] = []

    def known() -> list[tuple[float, tuple[int, int]]]:
        engines = [sample for sample in samples if isinstance(sample, ReplicaSample)]
        return [
            (engine.time_s, (engine.prefix_queries, engine.prefix_hits or 0))
            for engine in engines
            if engine.prefix_queries is not None
        ]

    def settled() -> bool:
        """Whether they have not changed for six seconds: nodes export them once a second."""
        last_s, last = known()[-1] if known() else (0.0, None)
        same = [at_s for at_s, counts in known() if counts == last]
        return bool(same) and last_s - same[0] >= 6

    with Telemetry(endpoint, wb.client.start_clock(), samples.append):
        deadline = time.monotonic() + 90
        while not settled():
            assert time.monotonic() < deadline, samples[-5:]
            time.sleep(0.5)
    return known()[-1][1]


def test_hits_are_those_of_the_trace(endpoint: Endpoint, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    write_trace(file, BLOCK)
    replay = TraceReplay(path=str(file), time_unit="s", block_size=BLOCK)
    load = LoadSpec(arrivals=replay, prompts=TracePrompts(), seed=77)
    plan = make_plan(load, load_tokenizer(endpoint.tokenizer), max_model_len=1024)
    size = kv_cache_size(endpoint)
    assert size is not None
    before = counters(endpoint)
    for arrival in plan:
        prompt: Any = arrival.turns[0].content
        endpoint.client.completions.create(
            model=endpoint.model_id,
            prompt=list(prompt),
            max_tokens=1,
        )
    after = counters(endpoint)
    computed = prefix_hits(
        replay_trace(replay, content=True).requests,
        trace_block=BLOCK,
        engine_block=size.block,
        capacity_blocks=size.blocks,
    )
    assert 0.1 < computed.rate < 0.9
    assert (after[0] - before[0], after[1] - before[1]) == (computed.queries, computed.hits)
