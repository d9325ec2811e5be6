"""Checks of a model's files: the configuration, the architecture, the weights and the tokenizer.

An engine finds such a fault only after it has started, when the service that it replaces may have
ended. Only headers of weights are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.compat.vllm import supports_architecture
from serving.errors import ModelNotFoundError
from serving.spec.model import ModelSpec, is_local

FROM_FILES = {"auto", "hf", "safetensors", "fastsafetensors"}
"""Values of vLLM's ``load_format`` that read the weights checked here."""

INDEX = "model.safetensors.index.json"
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.gguf")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model*",
    "tokenizer_config.json",
    "tekken.json",
    "vocab.*",
    "spiece.model",
    "*.tiktoken",
)

HEADER_LENGTH_BYTES = 8
"""A safetensors file starts with the length of its header as an integer of this size."""

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""

HUB_TIMEOUT_S = 5.0
HUB_ERRORS = {
    "RepoNotFound": "does not exist on the hub, or is private",
    "GatedRepo": "is gated on the hub, and the token has no access",
    "RevisionNotFound": "has no such revision on the hub",
}
"""What the hub's header ``X-Error-Code`` says about a model."""


def check_model_files(model: ModelSpec) -> None:
    """Check the folder of a model, if the source is one.

    Raises:
        ModelNotFoundError: The folder does not exist, a file is missing or damaged, or vLLM does
            not know the architecture.
    """
    if model.embedded or not is_local(model.source):
        return
    folder = Path(model.source).expanduser()
    if not (folder / "config.json").is_file():
        problem = "has no config.json" if folder.is_dir() else "does not exist"
        raise ModelNotFoundError(
            f"model.source = {model.source!r} {problem}. Give the folder of a model in Hugging "
            "Face format, a Hugging Face id, 'tiny' or 'nano'."
        )
    _check_architecture(model, _read_json(folder / "config.json"))
    if model.engine_kwargs.get("load_format", "auto") in FROM_FILES:
        _check_weights(model, folder)
    _check_tokenizer(model, folder)


def check_hub(model: ModelSpec) -> None:
    """Ask the hub for a model and for adapters that are not on this machine.

    The check passes if the hub cannot be reached: the cluster may reach it, or have the model.

    Raises:
        ModelNotFoundError: The hub says that it has no such model, or refuses access to it.
    """
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return
    if not model.embedded:
        revision = model.engine_kwargs.get("revision")
        _ask_hub("model.source", model.source, "config.json", revision)
    for name, path in model.adapters.items():
        _ask_hub(f"model.adapters[{name!r}]", path, "adapter_config.json", None)


def _ask_hub(argument: str, source: str, file: str, revision: str | None) -> None:
    if is_local(source) or "://" in source:
        return
    import httpx
    from huggingface_hub import get_token, hf_hub_url, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(source, file, revision=revision), str):
        return
    endpoint = os.environ.get("HF_ENDPOINT")
    url = hf_hub_url(source, file, revision=revision, endpoint=endpoint)
    headers = {"Authorization": f"Bearer {token}"} if (token := get_token()) else {}
    try:
        reply = httpx.head(url, headers=headers, timeout=HUB_TIMEOUT_S)
    except httpx.HTTPError:
        return
    if problem := HUB_ERRORS.get(reply.headers.get("x-error-code", "")):
        raise ModelNotFoundError(
            f"{argument} = {source!r} {problem}. Check the id, and set HF_TOKEN to a token "
            "that may read it."
        )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelNotFoundError(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise _damaged(file, f"is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise _damaged(file, "must contain a JSON object")
    return content


def _damaged(file: Path, problem: str) -> ModelNotFoundError:
    return ModelNotFoundError(f"{file} {problem}; copy or download the model again.")


def _check_architecture(model: ModelSpec, config: dict[str, Any]) -> None:
    overridden = model.engine_kwargs.keys() & {"hf_overrides", "trust_remote_code", "model_impl"}
    architectures = config.get("architectures")
    if overridden or "auto_map" in config or not isinstance(architectures, list):
        return
    if architectures and not any(supports_architecture(str(name)) for name in architectures):
        raise ModelNotFoundError(
            f"model.source = {model.source!r} has the architecture {', '.join(architectures)}, "
            "which this version of vLLM does not support. Choose another model."
        )


def _check_weights(model: ModelSpec, folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if (folder / INDEX).is_file():
        _check_index(folder)
    elif not files and not any(path for kind in OTHER_WEIGHTS for path in folder.glob(kind)):
        raise ModelNotFoundError(
            f"model.source = {model.source!r} has no weights (*.safetensors). Copy or download the "
            "model again, or set model.engine_kwargs['load_format'] = 'dummy' for random weights."
        )
    for file in files:
        read_tensors(file)


def _check_index(folder: Path) -> None:
    """Check that every tensor of a model in several files is in the file that the index names."""
    file = folder / INDEX
    weight_map = _read_json(file).get("weight_map")
    if not isinstance(weight_map, dict):
        raise _damaged(file, "has no weight_map")
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise _damaged(file, f"names {name}, which does not exist")
        tensors = read_tensors(folder / name)
        for tensor, place in weight_map.items():
            if place == name and tensor not in tensors:
                raise _damaged(folder / name, f"lacks the tensor {tensor}, which {INDEX} names")


def read_tensors(file: Path) -> dict[str, Any]:
    """Return the header of a safetensors file, after a check of the file's size.

    Raises:
        ModelNotFoundError: The file is truncated, or no safetensors file.
    """
    actual = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(HEADER_LENGTH_BYTES), "little")
        start = HEADER_LENGTH_BYTES + length
        if actual < start and length <= MAX_HEADER_BYTES:
            raise _truncated(file, actual, f"at least {start:,}")
        header = stream.read(min(length, MAX_HEADER_BYTES))
    try:
        tensors: dict[str, Any] = json.loads(header)
        tensors.pop("__metadata__", None)
        expected = start + max(_ends(tensors), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(file, "is not a safetensors file") from None
    if actual != expected:
        raise _truncated(file, actual, f"{expected:,}")
    return tensors


def _ends(tensors: dict[str, Any]) -> Iterator[int]:
    for tensor in tensors.values():
        yield int(tensor["data_offsets"][1])


def _truncated(file: Path, actual: int, expected: str) -> ModelNotFoundError:
    return _damaged(file, f"has {actual:,} bytes, but its header describes {expected}")


def _check_tokenizer(model: ModelSpec, folder: Path) -> None:
    kwargs = model.engine_kwargs
    if kwargs.get("skip_tokenizer_init"):
        return
    if name := kwargs.get("tokenizer"):
        if not is_local(name):
            return
        folder = Path(name).expanduser()
    if not any(path for kind in TOKENIZER_FILES for path in folder.glob(kind)):
        raise ModelNotFoundError(
            f"{folder} has no tokenizer (tokenizer.json). Copy it there, or name another tokenizer "
            "in model.engine_kwargs['tokenizer']."
        )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            _read_json(folder / name)
