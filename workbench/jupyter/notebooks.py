"""The workbench's notebooks below the folder of a Jupyter server, for JupyterLab's launcher."""

from __future__ import annotations

import json
import re
from pathlib import Path

_NAME = re.compile(r"\d\d_\w+\.ipynb")
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)


def find_notebooks(root: Path) -> list[dict[str, str]]:
    """Return the ``path`` and the ``title`` of each notebook in the folder or in its notebooks/.

    Paths are relative to the folder. Notebooks that do not import `workbench` are left out.
    """
    files = [
        file
        for folder in (root, root / "notebooks")
        for file in sorted(folder.glob("*.ipynb"))
        if _NAME.fullmatch(file.name)
    ]
    found = [(file, _title(file)) for file in files]
    return [
        {"path": file.relative_to(root).as_posix(), "title": title}
        for file, title in found
        if title is not None
    ]


def _title(file: Path) -> str | None:
    """Return a notebook's first heading, or its name; None if it is not one of the workbench's."""
    try:
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        sources = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not any(kind == "code" and "import workbench" in source for kind, source in sources):
        return None
    headings = (_TITLE.search(source) for kind, source in sources if kind == "markdown")
    heading = next((match for match in headings if match), None)
    return heading[1].strip() if heading else file.stem.replace("_", " ")
