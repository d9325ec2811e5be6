"""Which HTTP front end the replicas of a model have, and why."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from serving.compat.vllm_rust import rust_program
from serving.errors import MissingPackageError, SpecError
from serving.spec.model import KV_AWARE, ModelSpec, is_local

CAP = "max_new_tokens"
"""The entry of ``override_generation_config`` that every replica has, from the spec's limits."""

_SUPPORTED = """
    async_scheduling attention_backend attention_config block_size
    compilation_config cpu_offload_gb cudagraph_capture_sizes disable_custom_all_reduce
    disable_hybrid_kv_cache_manager distributed_executor_backend download_dir
    enable_auto_tool_choice enable_chunked_prefill enable_prefix_caching enforce_eager
    gpu_memory_utilization ignore_patterns kernel_config kv_cache_dtype kv_cache_memory_bytes
    load_format logits_processors long_prefill_token_threshold max_cudagraph_capture_size
    max_logprobs max_num_batched_tokens
    max_num_seqs max_parallel_loading_workers model_loader_extra_config moe_backend
    num_gpu_blocks_override numa_bind optimization_level override_generation_config
    performance_mode prefix_caching_hash_algo quantization safetensors_load_strategy seed
    structured_outputs_config tool_call_parser tool_parser_plugin use_tqdm_on_load
    worker_cls worker_extension_cls
    """
SUPPORTED_ARGUMENTS = frozenset(_SUPPORTED.split())
"""Arguments of vLLM that change nothing in what the Rust front end does: they concern the engine,
or requests that go to the front end in Python. Others are not supported until they are compared."""


class Frontend(NamedTuple):
    """The HTTP front end of a model's replicas.

    Attributes:
        name: ``rust`` answers what it supports, and vLLM's own server in Python the rest.
        reason: Why.
    """

    name: Literal["python", "rust"]
    reason: str

    def __str__(self) -> str:
        language = {"python": "Python", "rust": "Rust"}[self.name]
        return f"vLLM's HTTP front end in {language}: {self.reason}"


def choose_frontend(model: ModelSpec) -> Frontend:
    """Return the front end of a model's replicas.

    Raises:
        SpecError: ``frontend = 'rust'``, and the specification has what it does not support.
        MissingPackageError: ``frontend = 'rust'``, and its program is missing here, or of another
            version than vLLM.
    """
    if model.frontend == "python":
        return Frontend("python", "model.frontend is 'python'")
    try:
        if problem := unsupported(model):
            raise SpecError(problem)
        program = rust_program(model.env)
    except (SpecError, MissingPackageError) as error:
        if model.frontend == "rust":
            raise
        return Frontend("python", str(error))
    return Frontend("rust", f"model.frontend is {model.frontend!r}, and {program} supports it")


def other_frontends(models: Iterable[ModelSpec]) -> dict[str, str]:
    """Return the front end and the reason, by model, where it is not the default.

    For ``frontend = 'auto'`` this is the choice in this environment; each replica makes its own.
    """
    return {
        model.model_id: str(
            choose_frontend(model)
            if model.frontend == "auto"
            else Frontend(model.frontend, f"model.frontend is {model.frontend!r}")
        )
        for model in models
        if model.frontend != "python"
    }


def unsupported(model: ModelSpec) -> str | None:
    """Return what the Rust front end does not support in a specification, and the fix, or None."""
    fix = "Leave it out, or set model.frontend = 'python'."
    fields = {
        "data_parallel_size": model.data_parallel_size != 1,
        "disaggregated": model.disaggregated is not None,
        "adapters": bool(model.adapters),
        "routing": model.routing == KV_AWARE,
    }
    kwargs = model.engine_kwargs
    if used := next((name for name, present in fields.items() if present), None):
        value = getattr(model, used)
        return f"model.{used} = {value!r} does not work with vLLM's Rust front end. {fix}"
    if others := sorted(kwargs.keys() - SUPPORTED_ARGUMENTS):
        return (
            f"model.engine_kwargs[{others[0]!r}] is not supported with vLLM's Rust front end. {fix}"
        )
    if others := sorted((kwargs.get("override_generation_config") or {}).keys() - {CAP}):
        return (
            f"model.engine_kwargs['override_generation_config'][{others[0]!r}] is not supported "
            f"with vLLM's Rust front end. {fix}"
        )
    if is_local(model.path) and not (Path(model.path).expanduser() / "tokenizer.json").is_file():
        return (
            f"vLLM's Rust front end needs the file tokenizer.json, which {model.path} does not "
            "have. Set model.frontend = 'python'."
        )
    return None


def answer_limit(model: ModelSpec) -> int | None:
    """Return the most tokens of an answer, as ``override_generation_config`` has them."""
    limit: int | None = (model.engine_kwargs.get("override_generation_config") or {}).get(CAP)
    return limit
