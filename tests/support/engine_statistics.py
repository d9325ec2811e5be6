"""vLLM's statistics of an engine's steps, with random values and without an engine."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine import FinishReason
from vllm.v1.metrics.stats import FinishedRequestStats, IterationStats, SchedulerStats

from serving.models.embedded import tiny_model_path


@cache
def engine_config() -> Any:
    """Return vLLM's configuration of the embedded model."""
    arguments = EngineArgs(model=str(tiny_model_path()), dtype="float32", enforce_eager=True)
    return arguments.create_engine_config()


def step(source: random.Random, running: int = 8) -> tuple[SchedulerStats, IterationStats]:
    """Return the statistics of a step in which ``running`` streams got a token each.

    Some have begun, and some have ended.
    """
    scheduler = SchedulerStats(
        num_running_reqs=running,
        num_waiting_reqs=source.randrange(4),
        num_skipped_waiting_reqs=source.randrange(2),
        kv_cache_usage=source.random(),
    )
    scheduler.prefix_cache_stats.queries = source.randrange(100)
    scheduler.prefix_cache_stats.hits = source.randrange(50)
    iteration = IterationStats()
    iteration.num_generation_tokens = running
    iteration.inter_token_latencies_iter = [source.expovariate(50) for _ in range(running)]
    for _ in range(source.randrange(3)):
        tokens = iteration.prompt_token_stats
        tokens.computed += 40
        tokens.local_cache_hit += 8
        tokens.cached_tokens += 8
        tokens.total += 48
        iteration.time_to_first_tokens_iter.append(source.expovariate(5))
    for _ in range(source.randrange(3)):
        iteration.finished_requests.append(_finished(source))
        iteration.n_params_iter.append(1)
        iteration.max_num_generation_tokens_iter.append(source.randrange(1, 300))
    iteration.num_preempted_reqs = source.randrange(2)
    return scheduler, iteration


def _finished(source: random.Random) -> FinishedRequestStats:
    reasons = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT)
    return FinishedRequestStats(
        finish_reason=source.choice(reasons),
        e2e_latency=source.expovariate(1),
        num_prompt_tokens=source.randrange(1, 500),
        num_generation_tokens=source.randrange(1, 300),
        max_tokens_param=source.choice((None, 64)),
        queued_time=source.expovariate(100),
        prefill_time=source.expovariate(20),
        inference_time=source.expovariate(1),
        decode_time=source.expovariate(1),
        mean_time_per_output_token=source.expovariate(50),
        num_cached_tokens=source.randrange(1),
    )
