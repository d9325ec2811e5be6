"""An executed notebook, read."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat


def output_text(path: Path) -> str:
    """What the executed notebook's code cells printed or returned, as text."""
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            found.append(output.get("text") or json.dumps(output.get("data", {}))[:2000])
    return "".join(found)
