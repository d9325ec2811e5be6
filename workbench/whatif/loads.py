"""Measure an endpoint for a calibration: a few short loads that determine each constant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.spec.model import ModelSpec
from serving.spec.service import ServiceSpec
from workbench.analysis.kv_cache import NULL_BLOCKS, kv_cache_size
from workbench.errors import SettingError
from workbench.experiments.measure import measure, warm_up
from workbench.runs.provenance import hardware
from workbench.runs.run import Run
from workbench.workload.arrivals import ClosedLoop
from workbench.workload.prompts import LogNormal, RandomPrompts, Uniform
from workbench.workload.spec import LoadSpec

if TYPE_CHECKING:
    from workbench.endpoints.deployed import Endpoint

SECONDS = {"one_stream": 30.0, "few_streams": 30.0, "mixed_lengths": 30.0, "saturation": 30.0}
"""The loads and their durations: about two minutes together."""

THINK_S = 0.2
"""Mean wait of a user. Without it every request would arrive at the end of a step, and the wait for
the next step would not be random."""

LONGEST_SHARE = 0.9
"""Share of the context that the longest request takes."""

BIG_GPU_MIB = 70 * 1024


def loads_for(model: ModelSpec, context: int, seed: int = 0) -> dict[str, LoadSpec]:
    """Return the loads of a calibration by name.

    Args:
        model: The model; its limits bound the number of streams.
        context: Tokens that prompt and answer may have together.
        seed: Seed of the prompts.
    """
    most = model.scaling.max_ongoing_requests
    answer = max(1, min(256, int(context * LONGEST_SHARE / 3)))
    prompt = max(1, int(context * LONGEST_SHARE) - answer)
    median = max(1, min(128, prompt // 4))
    mixed = RandomPrompts(
        input=LogNormal(median=median, sigma=1.0, high=prompt),
        output=Uniform(low=1, high=answer),
    )
    wide = RandomPrompts(input=Uniform(low=1, high=prompt), output=Uniform(low=1, high=answer))
    streams = {
        "one_stream": (1, wide),
        "few_streams": (max(1, most // 8), mixed),
        "mixed_lengths": (max(1, most // 3), wide),
        "saturation": (most, mixed),
    }
    return {
        name: LoadSpec(
            arrivals=ClosedLoop(max_concurrency=count, think_s=THINK_S),
            prompts=prompts,
            duration_s=SECONDS[name],
            count=100_000,
            seed=seed + number,
        )
        for number, (name, (count, prompts)) in enumerate(streams.items())
    }


async def calibration_loads(
    endpoint: Endpoint, *, root: str | Path = "runs/calibration", seed: int = 0
) -> list[Run]:
    """Send the loads of a calibration in about two minutes, and return their runs.

    Args:
        endpoint: A service of one model with one replica.
        root: Folder of the runs.
        seed: Seed of the prompts.

    Raises:
        SettingError: The service cannot be calibrated. Nothing was sent.
    """
    spec = endpoint.spec
    if not isinstance(spec, ServiceSpec) or spec.model.scaling.max_replicas != 1:
        raise SettingError(
            "endpoint must be a service of one model with max_replicas = 1, so that a replica's "
            f"requests are known; got {type(spec).__name__} {spec.name!r}"
        )
    model = spec.model
    size = kv_cache_size(endpoint)
    if size is None:
        raise SettingError(
            "the engine does not report the size of its KV cache; wait until it runs, or make the "
            "runs yourself and give kv_blocks and block_size to wb.whatif.calibrate"
        )
    limits = engine_limits(model, hardware())
    limits |= {"kv_blocks": size.blocks - NULL_BLOCKS, "block_size": size.block}
    context = model.max_model_len or min(2048, limits["kv_blocks"] * size.block)
    runs = []
    for name, load in loads_for(model, context, seed).items():
        await warm_up(endpoint, load)
        facts = {"load": load.model_dump(mode="json"), "engine": limits, "seed": load.seed}
        run = Run.create(root, facts, run_id=name, numbered=True)
        await measure(endpoint, load, run=run)
        runs.append(run)
    return runs


def engine_limits(model: ModelSpec, machine: Mapping[str, Any]) -> dict[str, int]:
    """Return the limits of a step: those of the spec, else vLLM 0.29's defaults for the device.

    The defaults are those of `EngineArgs.get_batch_defaults` for a server.
    """
    tokens, seats = 2048, 256
    if model.accelerator == "cpu":
        tokens, seats = 2048 * model.workers, 128 * model.workers
    elif any(_is_big(str(gpu)) for gpu in machine.get("gpus") or ()):
        tokens, seats = 8192, 1024
    given = model.engine_kwargs
    return {
        "max_num_batched_tokens": int(given.get("max_num_batched_tokens") or tokens),
        "max_num_seqs": int(given.get("max_num_seqs") or seats),
    }


def _is_big(gpu: str) -> bool:
    """Return whether a GPU, described as in a run's hardware, has 70 GiB and is no A100."""
    memory = re.search(r"(\d+) MiB", gpu)
    return memory is not None and int(memory[1]) >= BIG_GPU_MIB and "a100" not in gpu.lower()
