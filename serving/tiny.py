"""Where the embedded model lies: a real Llama for machines with no GPU and no model hub."""

from __future__ import annotations

from pathlib import Path

from serving.errors import ModelNotFoundError

TINY_MODEL_ID = "tiny-llama-glossary"

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def tiny_model_path(folder: Path | None = None) -> Path:
    """The absolute path of the model's folder, inside this package unless `folder` is given.

    Raises ModelNotFoundError if a file is missing or empty.
    """
    path = (folder or Path(__file__).parent / "models" / "tiny").resolve()
    missing = [name for name in FILES if not _has_content(path / name)]
    if missing:
        raise ModelNotFoundError(
            f"the embedded model in {path} lacks {', '.join(missing)}; reinstall the package, "
            f"or make the files again with `python -m serving.models.train_tiny --out {path}`"
        )
    return path


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
