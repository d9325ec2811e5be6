"""Reading an executed notebook."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat


def output_text(path: Path) -> str:
    """Return what the code cells printed or returned, as text."""
    texts = []
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            texts.append(output.get("text") or json.dumps(output.get("data", {}))[:2000])
    return "".join(texts)
