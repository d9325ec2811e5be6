"""A run in a terminal while it goes on, read from its folder."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workbench.experiments.phases import present_phase
from workbench.experiments.run_watch import RECENT_S, RunWatch, View
from workbench.quantities import NONE, quantity
from workbench.records import LoadChange
from workbench.runs.tail import Tail

if TYPE_CHECKING:
    from rich.console import RenderableType

BARS = "▁▂▃▄▅▆▇█"
HISTORY = 48
"""Samples in a row of bars."""


class TerminalView:
    """Draws the run in the folder `path`, which may not exist yet, and one deployment of it."""

    def __init__(self, path: Path, deployment: str) -> None:
        self._path = path
        self._watch = RunWatch(path, deployment)
        self._changes = Tail(path / "load.jsonl", LoadChange)
        self._rate: float | None = None
        self._ttft = deque[float | None](maxlen=HISTORY)
        self._running = deque[float | None](maxlen=HISTORY)
        self._sampled_s = -1.0

    def __rich__(self) -> RenderableType:
        """Return the present state as a panel."""
        from rich.panel import Panel
        from rich.table import Table

        rows = self.rows()
        table = Table.grid(padding=(0, 2))
        for label, text in rows.items():
            table.add_row(f"[bold]{label}[/]", text)
        return Panel(table, title="watch autoscaling", title_align="left")

    def rows(self) -> dict[str, str]:
        """Return the present state as text by label."""
        view = self._view()
        if view is None:
            return {"state": "starting Ray, the service and its first replica"}
        self._remember(view)
        phase = present_phase(self._path)
        failed = sum(r.status not in ("ok", "cancelled") for r in self._watch.records)
        ended = f"{len(self._watch.records):,} requests ended, {failed:,} failed"
        return {
            "time": f"{int(view.time_s) // 60}:{int(view.time_s) % 60:02d}",
            "phase": f"{phase[0]}: until {phase[1]}" if phase else NONE,
            "load": f"{quantity(self._rate, 'requests/s')}, {ended}",
            "replicas": f"{_replicas(view)}  {bars(self._running)}",
            "TTFT p95": f"{quantity(_ttft_p95_s(view), 's')} in the last {RECENT_S:g} s  "
            f"{bars(self._ttft)}",
        }

    def _view(self) -> View | None:
        for change in self._changes.new():
            if change.what == "rate":
                self._rate = change.value
            elif change.what == "start" and change.load is not None:
                self._rate = change.load["arrivals"].get("rate")
        view = self._watch.view(0.0)
        if view.sample is None:
            return None
        return self._watch.view(view.sample.time_s)

    def _remember(self, view: View) -> None:
        if view.sample is not None and view.sample.time_s > self._sampled_s:
            self._sampled_s = view.sample.time_s
            self._ttft.append(_ttft_p95_s(view))
            self._running.append(float(view.sample.running or 0))


def bars(values: deque[float | None]) -> str:
    """Return a row of bars from 0 to the highest value; a space where there is none."""
    highest = max((value for value in values if value is not None), default=0.0) or 1.0
    steps = len(BARS) - 1
    return "".join(
        " " if value is None else BARS[round(value / highest * steps)] for value in values
    )


def _replicas(view: View) -> str:
    sample = view.sample
    assert sample is not None
    others = {"starting": sample.starting, "stopping": sample.stopping}
    text = f"{sample.running or 0} running of {sample.target or 0}"
    return text + "".join(f", {count} {state}" for state, count in others.items() if count)


def _ttft_p95_s(view: View) -> float | None:
    times = [
        r.first_token_s - r.sent_s
        for r in view.recent
        if r.first_token_s is not None and r.sent_s is not None
    ]
    return float(np.percentile(times, 95)) if times else None
