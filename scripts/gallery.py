"""Execute notebooks and store the results, small and compressed, for the docs site.

    .venv/bin/python scripts/gallery.py          # all notebooks, about an hour on two CPU cores
    .venv/bin/python scripts/gallery.py 01 08    # these, in this order

Each notebook runs with papermill and the parameters of a profile, on a real engine if it needs one.
docs/gallery/NAME.ipynb.gz then has its cells with what they printed, their tables, and their
figures as plotly's data. Scripts, lines of progress and the paths of this machine are left out.
"""

from __future__ import annotations

import argparse
import gzip
import re
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from serving.errors import WorkbenchError
from workbench.automation.execution import run_notebook
from workbench.automation.notebooks import find_notebook, read_parameters
from workbench.errors import RunError, SettingError
from workbench.runs.provenance import hardware, versions
from workbench.runs.redact import redact

ROOT = Path(__file__).resolve().parent.parent
GALLERY = ROOT / "docs" / "gallery"
RUNS = ROOT / "build" / "gallery"
PARAMETERS = ROOT / "notebooks" / "params"
FIGURE = "application/vnd.plotly.v1+json"
KEPT = (FIGURE, "text/html", "text/markdown", "image/svg+xml", "image/png", "text/plain")
"""Types of output, the best first; one of them is stored."""
MAX_BYTES = 300_000
CURVE, COMPARISON = "01_latency_under_load", "08_compare_runs"
SIDES = {"baseline": "32", "candidate": "64"}
"""The sides of the comparison: probes of the curve at these rates, in requests/s."""
PROGRESS = re.compile(r"^ *\d+\.\d s  .*\n?", re.MULTILINE)
"""Lines that a load and a start print while one waits for them: seconds, then the state."""
REPEATS = 3
"""Probes at each rate: a comparison needs three pairs for an interval."""


def main() -> None:
    """Execute the notebooks that the command line names, or all, and store them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", help="names or their beginnings, such as 01")
    parser.add_argument("--profile", default="cpu", help="folder in notebooks/params (cpu)")
    arguments = parser.parse_args()
    every = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    failed = [name for name in arguments.notebooks or every if not stored(name, arguments.profile)]
    if failed:
        sys.exit(f"gallery: not stored: {', '.join(failed)}")


def stored(name: str, profile: str) -> bool:
    """Execute and store a notebook, and return whether that succeeded."""
    try:
        path = find_notebook(name)
        file = store(path, parameters_for(path.stem, profile), profile)
    except WorkbenchError as error:
        print(f"gallery: {name}: {error}", file=sys.stderr, flush=True)
        return False
    print(f"gallery: {file.relative_to(ROOT)}, {file.stat().st_size:,} bytes", flush=True)
    return True


def parameters_for(name: str, profile: str) -> dict[str, Any]:
    """Return the parameters of a notebook: those of the profile, and what the gallery adds."""
    parameters = read_parameters(PARAMETERS / profile / f"{name}.yaml")
    if name == CURVE:
        parameters["repeats"] = REPEATS
    if name == COMPARISON:
        parameters |= {side: probes_at(rate) for side, rate in SIDES.items()}
    return parameters


def probes_at(rate: str) -> str:
    """Return the first probes of the curve at a rate, as notebook 08 expects them.

    Raises:
        RunError: The curve was not measured, or not often enough.
    """
    folder = RUNS / CURVE / "probes"
    probes = sorted(folder.glob(f"*-at-{rate}"))[:REPEATS]
    if len(probes) < REPEATS:
        raise RunError(
            f"{len(probes)} probes of {rate} requests/s in {folder}, {REPEATS} are needed: store "
            "notebook 01 first"
        )
    return ",".join(str(probe.relative_to(RUNS)) for probe in probes)


def store(path: Path, parameters: dict[str, Any], profile: str) -> Path:
    """Execute a notebook, and return the file of the gallery that has its result."""
    shutil.rmtree(RUNS / path.stem, ignore_errors=True)
    begin = datetime.now(UTC)
    executed = run_notebook(path, parameters, runs=RUNS, run_id=path.stem)
    notebook = reduced(nbformat.read(executed, as_version=4))
    notebook.metadata["gallery"] = redact(
        {
            "date": f"{begin:%Y-%m-%d}",
            "profile": profile,
            "seconds": round((datetime.now(UTC) - begin).total_seconds()),
            "parameters": parameters,
            "hardware": hardware(),
            "versions": versions(),
        }
    )
    return write(notebook, GALLERY / f"{path.stem}.ipynb.gz")


def reduced(notebook: NotebookNode) -> NotebookNode:
    """Return an executed notebook with what a page shows, and without the traces of its run."""
    cells = [cell for cell in notebook.cells if "injected-parameters" not in tags(cell)]
    for cell in cells:
        cell.metadata = NotebookNode({"tags": tags(cell)} if tags(cell) else {})
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = list(reduced_outputs(cell.outputs))
    kernel = {name: notebook.metadata[name] for name in ("kernelspec", "language_info")}
    return nbformat.v4.new_notebook(cells=cells, metadata=kernel)


def tags(cell: NotebookNode) -> list[str]:
    """Return a cell's tags, without those of papermill."""
    return list(cell.metadata.get("tags", []))


def reduced_outputs(outputs: list[NotebookNode]) -> Iterator[NotebookNode]:
    """Yield what a cell printed as one text, and one type of each displayed value."""
    text = ""
    for output in outputs:
        if output.output_type == "stream":
            text += output.text if output.name == "stdout" else ""
            continue
        yield from printed(text)
        text = ""
        yield displayed(output.data)
    yield from printed(text)


def printed(text: str) -> Iterator[NotebookNode]:
    """Yield an output of text, if any remains without progress and the paths of this machine."""
    text = PROGRESS.sub("", text).replace(f"{RUNS}/", "runs/").replace(f"{ROOT}/", "")
    if text:
        yield nbformat.v4.new_output("stream", name="stdout", text=text)


def displayed(data: dict[str, Any]) -> NotebookNode:
    """Return an output with the best of the stored types.

    Raises:
        SettingError: `data` has no type of `KEPT`.
    """
    kind = next((kind for kind in KEPT if kind in data), None)
    if kind is None:
        raise SettingError(f"an output has the types {', '.join(data)}, none of which is stored")
    return nbformat.v4.new_output("display_data", data={kind: data[kind]})


def write(notebook: NotebookNode, path: Path) -> Path:
    """Write a notebook, compressed, and return its path.

    Raises:
        SettingError: It contains a key or a path of this machine, or is too large.
    """
    content = nbformat.writes(notebook)
    if found := re.search(rf"\bsk-[\w-]{{16,}}|{re.escape(str(ROOT))}", content):
        raise SettingError(f"{path.name} would contain {found[0][:8]}...: do not print it")
    compressed = gzip.compress(content.encode(), mtime=0)
    if len(compressed) > MAX_BYTES:
        raise SettingError(
            f"{path.name} would have {len(compressed):,} bytes, at most {MAX_BYTES:,} are stored: "
            "execute the notebook with a smaller load"
        )
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(compressed)
    return path


def read(path: Path) -> NotebookNode:
    """Return a stored notebook."""
    return nbformat.reads(gzip.decompress(path.read_bytes()).decode(), as_version=4)


if __name__ == "__main__":
    main()
