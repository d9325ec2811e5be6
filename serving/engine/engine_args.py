"""From a ModelSpec to vLLM's arguments, its environment and Ray Serve LLM's configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.compat.ray import KV_AWARE_ROUTER
from serving.compat.variables import KV_AWARE_ENV
from serving.compat.vllm import bound_whitespace_in_calls, import_parser_plugins
from serving.spec.model import KV_AWARE, ModelSpec, is_local

if TYPE_CHECKING:
    from ray.serve.llm import LLMConfig


COMPACT_JSON = {"backend": "xgrammar", "disable_any_whitespace": True}
"""vLLM's ``structured_outputs_config``: JSON without whitespace between its parts.

A small model would otherwise write spaces until ``max_tokens``. docs/measurements.md compares the
backends that can do this.
"""


MAX_WHITESPACE = 2
"""Whitespace characters in a row in the arguments of a forced tool call."""


MAX_BATCHED_ADAPTERS = 8
"""vLLM's ``max_loras`` for a model with more adapters: a GPU reserves memory for each."""


def engine_kwargs(model: ModelSpec) -> dict[str, Any]:
    """Return vLLM's arguments; fields of the specification override ``engine_kwargs``."""
    kwargs = dict(model.engine_kwargs)
    structured = kwargs.get("structured_outputs_config") or {}
    if "backend" not in structured:
        kwargs["structured_outputs_config"] = COMPACT_JSON | structured
    kwargs |= _lora(model)
    if model.accelerator == "cpu":
        kwargs.setdefault("enforce_eager", True)
        kwargs.setdefault("worker_extension_cls", "serving.engine.amx.Extension")
        kwargs.setdefault("kv_cache_memory_bytes", int(model.kv_cache_gib * 2**30))
    elif (model.num_gpus or 1) < 1:
        # Replicas that share a GPU must share its memory too.
        kwargs.setdefault("gpu_memory_utilization", round(0.9 * (model.num_gpus or 1), 3))
    kwargs |= {
        "dtype": model.resolved_dtype,
        "tensor_parallel_size": model.tensor_parallel_size,
        "pipeline_parallel_size": model.pipeline_parallel_size,
    }
    if model.data_parallel_size > 1:
        kwargs["data_parallel_size"] = model.data_parallel_size
    if model.expert_parallel:
        kwargs["enable_expert_parallel"] = True
    if model.max_model_len is not None:
        kwargs["max_model_len"] = model.max_model_len
    return kwargs


def _lora(model: ModelSpec) -> dict[str, Any]:
    """Return vLLM's arguments for adapters; all of them may be in one batch and stay in memory.

    By default vLLM puts requests of one adapter only into a batch, and the others wait.
    """
    if not model.adapters:
        return {}
    count = len(model.adapters)
    places = cpu_places(count) if model.accelerator == "cpu" else min(count, MAX_BATCHED_ADAPTERS)
    places = model.engine_kwargs.get("max_loras", places)
    return {
        "enable_lora": True,
        "lora_modules": [{"name": name, "path": path} for name, path in model.adapters.items()],
        "max_loras": places,
        "max_cpu_loras": model.engine_kwargs.get("max_cpu_loras", max(count, places)),
    }


def cpu_places(adapters: int) -> int:
    """Return vLLM's smallest safe ``max_loras`` on a CPU: one more than there are adapters.

    In a batch with several of them, its CPU kernels (``vllm.lora.ops.torch_ops``) apply the last
    place to the requests without an adapter. vLLM fills the places in order, so one that is never
    filled changes nothing.
    """
    return adapters + 1


def environment(model: ModelSpec) -> dict[str, str]:
    """Return the environment variables of a replica and its engine processes, without secrets."""
    variables = {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    local = model.embedded or Path(model.source).expanduser().is_dir()
    if local and all(is_local(path) for path in model.adapters.values()):
        variables["HF_HUB_OFFLINE"] = "1"
    if model.accelerator == "cpu":
        variables |= {
            "OMP_NUM_THREADS": str(max(1, int(model.num_cpus))),
            "VLLM_CPU_OMP_THREADS_BIND": _thread_binding(model.workers),
        }
    elif (model.num_gpus or 1) < 1:
        # By default vLLM's Ray executor asks for a whole GPU per worker.
        variables["VLLM_RAY_PER_WORKER_GPUS"] = str(model.num_gpus)
    if model.routing == KV_AWARE:
        variables |= KV_AWARE_ENV
    return variables | model.env


def _thread_binding(workers: int) -> str:
    """One core per worker; a single worker is left to the scheduler, since replicas share cores.

    vLLM's automatic binding needs a NUMA node for each worker.
    """
    if workers == 1:
        return "nobind"
    cores = os.cpu_count() or 1
    return "|".join(str(worker % cores) for worker in range(workers))


def prepare_front_end(model: ModelSpec) -> None:
    """Set up in this process what vLLM's own launcher would, or what it has no argument for."""
    kwargs = engine_kwargs(model)
    import_parser_plugins(kwargs.get("tool_parser_plugin"), kwargs.get("reasoning_parser_plugin"))
    if kwargs["structured_outputs_config"].get("disable_any_whitespace"):
        bound_whitespace_in_calls(MAX_WHITESPACE)


def llm_config(model: ModelSpec) -> LLMConfig:
    """Return Ray Serve LLM's configuration. Imports vLLM: call it where the engine runs."""
    from ray.serve.llm import LLMConfig

    bundles = [dict(model.worker_resources) for _ in range(model.workers)]
    loads_by_itself = "://" not in model.source
    skip_download = {"callback_class": "serving.compat.ray_server.SkipNodeInit"}
    kv_aware = model.routing == KV_AWARE
    router = {"request_router_config": {"request_router_class": KV_AWARE_ROUTER}}
    config = LLMConfig(
        model_loading_config={"model_id": model.model_id, "model_source": model.path},
        accelerator_config={"kind": model.accelerator},
        accelerator_type=model.accelerator_type,
        placement_group_config={"bundles": bundles, "strategy": model.placement_strategy},
        # The last event of each answer then has its times in queue, prefill and decode.
        engine_kwargs={"enable_per_request_metrics": True} | engine_kwargs(model),
        # serving.engine.ray_metrics publishes vLLM's metrics at a lower cost.
        log_engine_metrics=False,
        callback_config=skip_download if loads_by_itself else {},
        deployment_config=router if kv_aware else {},
    )
    if kv_aware:
        from serving.compat.ray_server import report_kv_blocks

        report_kv_blocks(config)
    return config
