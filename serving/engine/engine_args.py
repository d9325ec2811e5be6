"""From a ModelSpec to vLLM: its arguments, its environment, its own list of what it knows."""

from __future__ import annotations

import ast
import os
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.errors import MissingPackageError, ModelNotFoundError, SpecError
from serving.sizing import checks
from serving.spec.model import ModelSpec

if TYPE_CHECKING:
    from ray.serve.llm import LLMConfig

OWN_FIELDS = {
    "model": "model.source",
    "served_model_name": "model.id",
    "dtype": "model.dtype",
    "max_model_len": "model.max_model_len",
    "tensor_parallel_size": "model.tensor_parallel_size",
    "pipeline_parallel_size": "model.pipeline_parallel_size",
    "data_parallel_size": "model.data_parallel_size",
    "enable_expert_parallel": "model.expert_parallel",
    "api_key": "api_key of deploy()",
    "hf_token": "the environment variable HF_TOKEN",
}
"""Engine arguments that the specification sets itself, and the field to use instead."""


@cache
def engine_arguments() -> frozenset[str]:
    """Every argument of vLLM's ``AsyncEngineArgs``, read from its source without importing it.

    Importing vLLM takes some ten seconds; its list of arguments is a dataclass in one file.

    Raises:
        MissingPackageError: vLLM is not installed here.
    """
    package = find_spec("vllm")
    if package is None or package.origin is None:
        raise MissingPackageError("The package 'vllm' is not installed. Install it: make setup")
    source = Path(package.origin).parent / "engine" / "arg_utils.py"
    classes = {
        node.name: node
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    return frozenset(
        statement.target.id
        for name in ("EngineArgs", "AsyncEngineArgs")
        for statement in classes[name].body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    )


def check(model: ModelSpec) -> None:
    """Everything about a model that can be refused before anything starts."""
    check_engine_kwargs(model)
    check_model_path(model)
    checks.check_parallel(model)
    checks.check_cache(model)


def check_engine_kwargs(model: ModelSpec) -> None:
    """Raise :class:`SpecError` for an argument vLLM does not know or another field sets."""
    for name, value in model.engine_kwargs.items():
        if name in OWN_FIELDS:
            raise SpecError(
                f"model.engine_kwargs[{name!r}] = {value!r}: set {OWN_FIELDS[name]} instead."
            )
        if name not in engine_arguments():
            close = get_close_matches(name, engine_arguments(), n=1)
            way_out = f"Did you mean {close[0]!r}?" if close else "See vLLM's engine arguments."
            raise SpecError(
                f"model.engine_kwargs[{name!r}] = {value!r}: vLLM has no such argument. {way_out}"
            )


def check_model_path(model: ModelSpec) -> None:
    """Raise :class:`ModelNotFoundError` for a local path that holds no model."""
    source = model.source
    if model.embedded or not (source.startswith(("/", ".", "~")) or Path(source).exists()):
        return
    folder = Path(source).expanduser()
    if not (folder / "config.json").is_file():
        state = "has no config.json" if folder.is_dir() else "does not exist"
        raise ModelNotFoundError(
            f"model.source = {source!r} {state}. Give the folder of a model in Hugging Face "
            "format, a Hugging Face id, 'tiny' or 'nano'."
        )


def engine_kwargs(model: ModelSpec) -> dict[str, Any]:
    """vLLM's arguments, the specification's own last word where both speak."""
    given = dict(model.engine_kwargs)
    if model.accelerator == "cpu":
        given.setdefault("enforce_eager", True)
        given.setdefault("worker_extension_cls", "serving.engine.amx.Extension")
        given.setdefault("kv_cache_memory_bytes", int(model.kv_cache_gib * 2**30))
    elif (model.num_gpus or 1) < 1:
        # Replicas that share a card must share its memory too.
        given.setdefault("gpu_memory_utilization", round(0.9 * (model.num_gpus or 1), 3))
    return given | {
        "dtype": model.resolved_dtype,
        "tensor_parallel_size": model.tensor_parallel_size,
        "pipeline_parallel_size": model.pipeline_parallel_size,
        **(
            {}
            if model.data_parallel_size == 1
            else {"data_parallel_size": model.data_parallel_size}
        ),
        **({"enable_expert_parallel": True} if model.expert_parallel else {}),
        **({} if model.max_model_len is None else {"max_model_len": model.max_model_len}),
    }


def _optional(model: ModelSpec) -> dict[str, Any]:
    size = model.data_parallel_size
    return {
        "data_parallel_size": size if size > 1 else None,
        "enable_expert_parallel": model.expert_parallel or None,
        "max_model_len": model.max_model_len,
    }


def environment(model: ModelSpec) -> dict[str, str]:
    """Environment variables of a replica and its engine processes; nothing secret among them."""
    variables = {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if model.embedded or Path(model.source).expanduser().is_dir():
        variables["HF_HUB_OFFLINE"] = "1"
    if model.accelerator == "cpu":
        variables |= {
            "OMP_NUM_THREADS": str(max(1, int(model.num_cpus))),
            "VLLM_CPU_OMP_THREADS_BIND": _thread_binding(model.workers),
        }
    elif (model.num_gpus or 1) < 1:
        # vLLM's Ray executor asks for a whole card a worker unless told otherwise.
        variables["VLLM_RAY_PER_WORKER_GPUS"] = str(model.num_gpus)
    return variables | model.env


def _thread_binding(workers: int) -> str:
    """One core a worker; a lone worker is left to the scheduler, since replicas share cores.

    vLLM's automatic binding wants a NUMA node for each worker.
    """
    if workers == 1:
        return "nobind"
    cores = os.cpu_count() or 1
    return "|".join(str(worker % cores) for worker in range(workers))


def llm_config(model: ModelSpec) -> LLMConfig:
    """Ray Serve LLM's configuration. Imports vLLM: call it where the engine runs."""
    from ray.serve.llm import LLMConfig

    bundles = [dict(model.worker_resources) for _ in range(model.workers)]
    local = "://" not in model.source
    return LLMConfig(
        model_loading_config={"model_id": model.model_id, "model_source": model.path},
        accelerator_config={"kind": model.accelerator},
        accelerator_type=model.accelerator_type,
        placement_group_config={"bundles": bundles, "strategy": model.placement_strategy},
        # Each answer's last event then tells its time in queue, prefill and decode.
        engine_kwargs={"enable_per_request_metrics": True} | engine_kwargs(model),
        callback_config={"callback_class": "serving.engine.replica.NoNodeInit"} if local else {},
    )
