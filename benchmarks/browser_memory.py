"""Growth of the browser's memory over an hour of the dashboard.

JupyterLab in headless Chromium shows the dashboard while a cell replays an hour of it at a pace
that the browser can follow (`_replay.py`: 8 replicas, 10 requests and two drawings per replayed
second). `browser_growth_mb` is the growth of all Chromium processes (proportional set size), and
`heap_growth_mb` the growth of the page's JavaScript heap. Both run from the fifth replayed minute
to the end, after a garbage collection. `drawn_s` is the last second that the browser has drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from _replay import HOUR_S, SETTLED_S
from _report import report

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from support.jupyterlab import chromium_page, jupyterlab, run_all, trace, wait_until  # noqa: E402
from support.process_memory import pss_gib  # noqa: E402

GOALS = {"browser_growth_mb": {"max": 100}}
FREE_RATE = [
    f"--ZMQChannelsWebsocketConnection.iopub_{name}_rate_limit=1e9" for name in ("data", "msg")
]
"""JupyterLab limits messages to about the dashboard's own pace; the replay is faster."""


def main() -> None:
    """Measure, and print the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replayed", type=int, default=HOUR_S, help="seconds to replay")
    parser.add_argument("--drawings", type=float, default=8, help="drawings per second")
    options = parser.parse_args()
    report("browser_memory", hour_in_a_browser(options.replayed, options.drawings), GOALS)


def hour_in_a_browser(seconds: int, drawings: float) -> dict[str, float]:
    """Start JupyterLab and Chromium, replay, and return the figures."""
    settled = min(SETTLED_S, seconds // 2)
    with tempfile.TemporaryDirectory() as folder:
        write_notebook(Path(folder) / "hour.ipynb", seconds, drawings)
        log = Path(folder) / "lab.log"
        with jupyterlab(Path(folder), log, *FREE_RATE) as address, chromium_page() as page:
            run_all(page, address("hour"), "An hour")
            page.locator(".workbench-dashboard .js-plotly-plot").wait_for(timeout=120_000)
            before = memory_at(page, settled)
            for second in range(settled + 60, seconds, 60):
                memory_at(page, second)
            done = page.locator(".jp-OutputArea-output", has_text="replayed_s")
            done.wait_for(timeout=600_000)
            page.wait_for_timeout(5_000)
            after = memory(page)
            kernel = json.loads(done.inner_text())
            figures = {f"{name}_growth_mb": after[name] - before[name] for name in after}
            figures |= {f"{name}_mb": after[name] for name in after}
            figures |= {"drawn_s": drawn_s(page), "drawings_a_second": drawings}
            figures |= {"replayed_s": seconds, "kernel_growth_mb": kernel["kernel_growth_mb"]}
    return {name: round(value, 1) for name, value in figures.items()}


def write_notebook(path: Path, seconds: int, drawings: float) -> None:
    """Write a notebook with a title and the cell that replays."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
    code += f"import _replay; _replay.replay({seconds}, {drawings})"
    v4: Any = nbformat.v4  # untyped
    cells = [v4.new_markdown_cell("# An hour"), v4.new_code_cell(code)]
    # Without a kernel name, JupyterLab asks for one.
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = v4.new_notebook(cells=cells, metadata=metadata)
    nbformat.write(notebook, path)  # type: ignore[no-untyped-call]


def memory_at(page: Any, second: int) -> dict[str, float]:
    """Wait until the browser has drawn that second, and print and return its memory."""
    wait_until(page, lambda: drawn_s(page) >= second, "drawings", timeout_s=600)
    used = memory(page)
    text = ", ".join(f"{name} {value:.0f} MB" for name, value in used.items())
    print(f"{second} s drawn: {text}", flush=True)
    return used


def drawn_s(page: Any) -> float:
    """The last second of the curve that the browser has drawn."""
    times, _ = trace(page, "Offered")
    return max(times, default=0.0)


def memory(page: Any) -> dict[str, float]:
    """Return the megabytes of Chromium and of the JavaScript heap, after a garbage collection."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    heap = session.send("Runtime.getHeapUsage")["usedSize"]
    session.detach()
    return {"browser": pss_gib(os.getpid(), "chrom") * 2**30 / 1e6, "heap": heap / 1e6}


if __name__ == "__main__":
    main()
