"""Checks of LoRA adapters: their configuration, their rank, and whether they fit the model.

vLLM would find such a fault when the engine has loaded, or at the first request, or not at all: an
adapter of another model with the same shapes loads, and its answers are wrong.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from serving.deploy.model_files import read_tensors
from serving.errors import SpecError
from serving.spec.model import HUB_ID, ModelSpec, is_local

MAX_LORA_RANK = 16
"""vLLM's default of ``max_lora_rank``."""

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""vLLM's values of ``max_lora_rank``."""

WEIGHTS = "adapter_model.safetensors"
OTHER_WEIGHTS = ("adapter_model.bin", "adapter_model.pt")

_LORA_TENSOR = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.\w+)?\.weight$")
_BEFORE_LAYERS = re.compile(r"^.*?(?=layers\.\d|lm_head)")

Shapes = dict[str, set[tuple[int, ...]]]


def check_adapters(model: ModelSpec) -> None:
    """Check the adapters that are on this machine.

    Raises:
        SpecError: An adapter is incomplete, vLLM does not support it, or it does not fit the model.
        ModelNotFoundError: A file of weights is damaged.
    """
    for argument, path in adapter_paths(model).items():
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise SpecError(
                f"{argument} = {path!r} does not exist. Give the path of a folder here."
            )
        _check_adapter(f"{argument} = {path!r}", folder, model)


def adapter_paths(model: ModelSpec) -> dict[str, str]:
    """Return the folders of adapters on this machine, by argument."""
    return {
        f"model.adapters[{name!r}]": path for name, path in model.adapters.items() if is_local(path)
    }


def _check_adapter(argument: str, folder: Path, model: ModelSpec) -> None:
    config = _read_config(argument, folder)
    if problem := _unsupported(config):
        raise SpecError(f"{argument} {problem}, which vLLM does not support; train it without.")
    _check_rank(argument, config["r"], model)
    _check_base(argument, config.get("base_model_name_or_path"), model)
    _check_weights(argument, folder, model)


def _read_config(argument: str, folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise SpecError(
            f"{argument} has no adapter_config.json. Give the folder of a LoRA adapter in PEFT's "
            "format."
        ) from None
    except ValueError:
        config = None
    if not isinstance(config, dict) or not _is_count(config.get("r")):
        raise SpecError(f"{argument}: {file} is not the configuration of a LoRA adapter.")
    return config


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1


def _unsupported(config: dict[str, Any]) -> str | None:
    """Return what vLLM's ``PEFTHelper`` would reject."""
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        return f"is an adapter of the type {kind!r}"
    if config.get("use_dora"):
        return "was trained with use_dora"
    if (bias := config.get("bias", "none")) != "none":
        return f"was trained with bias = {bias!r}"
    if config.get("modules_to_save"):
        return "was trained with modules_to_save"
    return None


def _check_rank(argument: str, rank: int, model: ModelSpec) -> None:
    limit = model.engine_kwargs.get("max_lora_rank", MAX_LORA_RANK)
    if rank <= limit:
        return
    larger = next((allowed for allowed in RANKS if allowed >= rank), None)
    fix = (
        "Train it with a smaller rank."
        if larger is None
        else f"Set model.engine_kwargs['max_lora_rank'] = {larger}."
    )
    raise SpecError(f"{argument} has rank {rank}, more than max_lora_rank = {limit}. {fix}")


def _check_base(argument: str, base: object, model: ModelSpec) -> None:
    """Compare the names of the models, unless one of them is the path of a folder.

    A model whose name continues that of the adapter's base is taken for a variant of it, such as a
    quantized one.
    """
    folder = not model.embedded and is_local(model.source)
    if folder or not isinstance(base, str) or not HUB_ID.match(base):
        return
    own = model.default_id.lower()
    if not own.startswith(base.split("/")[-1].lower()):
        raise SpecError(
            f"{argument} was trained for the model {base!r}, not for model.source = "
            f"{model.source!r}. Serve it with its own model."
        )


def _check_weights(argument: str, folder: Path, model: ModelSpec) -> None:
    if not (folder / WEIGHTS).is_file():
        if not any((folder / name).is_file() for name in OTHER_WEIGHTS):
            raise SpecError(f"{argument} has no weights ({WEIGHTS}). Copy the adapter again.")
        return
    shapes = _model_shapes(model)
    if not shapes:
        return
    for tensor, entry in read_tensors(folder / WEIGHTS).items():
        if (match := _LORA_TENSOR.match(tensor)) and ".experts" not in match[1]:
            _check_module(argument, match[1], match[2], entry["shape"], shapes)


def _check_module(
    argument: str, module: str, factor: str, shape: list[int], shapes: Shapes
) -> None:
    """Compare a factor of a module's change B A with the module's weight, of shape (out, in)."""
    known = shapes.get(_BEFORE_LAYERS.sub("", module))
    if known is None:
        raise SpecError(
            f"{argument} changes the module {module}, which the model does not have. Serve it with "
            "the model that it was trained for."
        )
    side, axis = ("inputs", 1) if factor == "A" else ("outputs", 0)
    sizes = {weight[axis] for weight in known}
    if shape[axis] not in sizes:
        raise SpecError(
            f"{argument} was trained for a module {module} with {shape[axis]} {side}, but that of "
            f"the model has {max(sizes)}. Serve it with the model that it was trained for."
        )


def _model_shapes(model: ModelSpec) -> Shapes:
    """Return the shapes of a model's matrices by module, if its weights are plain and here.

    Different versions of transformers write different prefixes before the layers, so the part
    before them is left out, and a module of an image encoder may have the name of another one.
    """
    folder = Path(model.path).expanduser()
    shapes: Shapes = defaultdict(set)
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        for tensor, entry in read_tensors(file).items():
            if not tensor.endswith(".weight"):
                continue
            if len(entry["shape"]) == 2:
                module = _BEFORE_LAYERS.sub("", tensor.removesuffix(".weight"))
                shapes[module].add(tuple(entry["shape"]))
    return {} if _quantized(folder) else dict(shapes)


def _quantized(folder: Path) -> bool:
    """Whether the weights have the packed shapes of a quantized model."""
    try:
        return "quantization_config" in json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
