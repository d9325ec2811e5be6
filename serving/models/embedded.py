"""Paths of the embedded models: small Llamas for machines without a GPU or a model hub."""

from __future__ import annotations

from pathlib import Path

from serving.errors import ModelNotFoundError

TINY_MODEL_ID = "tiny-llama-glossary"
EMBEDDED = {"tiny": TINY_MODEL_ID, "nano": "nano-llama-glossary"}
"""Id of each embedded model, by the ``source`` that selects it."""

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
"""Files without which vLLM cannot load a model."""

TRAINING_TOOL = Path(__file__).resolve().parents[2] / "tools" / "tiny_model"
"""The tool that trained the models. A checkout has it, an installed package does not."""


def tiny_model_path(folder: Path | None = None, name: str = "tiny") -> Path:
    """Return the absolute path of an embedded model's folder.

    Args:
        folder: A folder with the model's files; default: the one in this package.
        name: A key of EMBEDDED.

    Raises:
        ModelNotFoundError: A file is missing or empty.
    """
    path = (folder or Path(__file__).parent / name).resolve()
    missing = [file for file in FILES if not _has_content(path / file)]
    if missing:
        raise ModelNotFoundError(
            f"the embedded model {name!r} needs {', '.join(missing)} in {path}, which is missing "
            f"or empty; {_fix(path, name)}"
        )
    return path


def _fix(path: Path, name: str) -> str:
    if not TRAINING_TOOL.is_dir():
        return "reinstall llm-serving-workbench"
    return (
        f"restore them with `git checkout`, or train the model again in {TRAINING_TOOL.parents[1]} "
        f"with `python -m tools.tiny_model.train_tiny --size {name} --out {path}`"
    )


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
