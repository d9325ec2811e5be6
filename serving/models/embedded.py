"""Where the embedded models lie: real Llamas for machines with no GPU and no model hub."""

from __future__ import annotations

from pathlib import Path

from serving.errors import ModelNotFoundError

TINY_MODEL_ID = "tiny-llama-glossary"
EMBEDDED = {"tiny": TINY_MODEL_ID, "nano": "nano-llama-glossary"}
"""The id of each embedded model, by the ``source`` that stands for it."""

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def tiny_model_path(folder: Path | None = None, name: str = "tiny") -> Path:
    """The absolute path of the model's folder, inside this package unless `folder` is given.

    `name` is one of EMBEDDED. Raises ModelNotFoundError if a file is missing or empty.
    """
    path = (folder or Path(__file__).parent / name).resolve()
    missing = [name for name in FILES if not _has_content(path / name)]
    if missing:
        raise ModelNotFoundError(
            f"the embedded model in {path} lacks {', '.join(missing)}; reinstall the package, "
            "or make the files again with "
            f"`python -m tools.tiny_model.train_tiny --size {name} --out {path}`"
        )
    return path


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
