"""Show the progress of a load: a bar for a person, lines for a pipeline."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from workbench.errors import SettingError

if TYPE_CHECKING:
    from workbench.loadgen.handle import LiveLoad
    from workbench.records import RequestRecord
    from workbench.workload.spec import Arrival, LoadSpec

LINE_EVERY_S = 5.0


class Progress(Protocol):
    """Shows the progress of a load."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, records: Sequence[RequestRecord], in_progress: int, elapsed_s: float) -> None:
        """Show the state of the load."""
        ...

    def show_line(self, line: str) -> None:
        """Show one more line."""
        ...


def make_progress(kind: Progress | str | None, load: LoadSpec, plan: Sequence[Arrival]) -> Progress:
    """Return the progress of a planned load: 'bar', 'lines' or None.

    Raises:
        SettingError: There is no such progress.
    """
    if kind is not None and not isinstance(kind, str):
        return kind
    kinds = {"bar": BarProgress, "lines": LineProgress, None: NoProgress}
    if kind not in kinds:
        raise SettingError(f"progress must be 'bar', 'lines' or None, got {kind!r}")
    planned = sum(len(arrival.turns) for arrival in plan)
    return kinds[kind](planned, plan[-1].at_s, rate_label(load), load.duration_s)


def make_live_progress(kind: Progress | str | None, running: LiveLoad) -> Progress:
    """Return the progress of a live load: 'lines' or None. A bar would need a known end.

    Raises:
        SettingError: There is no such progress.
    """
    if kind is not None and not isinstance(kind, str):
        return kind
    if kind not in ("lines", None):
        raise SettingError(f"progress of a live load must be 'lines' or None, got {kind!r}")
    return LiveLineProgress(running) if kind else NoProgress(0, None, "")


def rate_label(load: LoadSpec) -> str:
    """Return the rate of a load in words, or '' where it has no single one."""
    arrivals = load.arrivals
    if arrivals.kind == "closed":
        return f"{arrivals.max_concurrency} at a time"
    rate = getattr(arrivals, "rate", None)
    return "" if rate is None else f"{rate:g} a second"


class NoProgress:
    """Shows nothing. The others build on what it computes."""

    def __init__(
        self, planned: int, last_at_s: float | None, rate: str, duration_s: float | None = None
    ) -> None:
        self._planned = planned
        self._last_at_s = last_at_s
        # Only a closed loop is ended by the duration. The plan of the others is cut to it.
        self._duration_s = duration_s if last_at_s is None else None
        count = f"{planned} requests"
        if self._duration_s is not None:
            count = f"requests for {self._duration_s:g} s, at most {planned}"
        self._title = f"sending {count}" + (f", {rate}" if rate else "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, records: Sequence[RequestRecord], in_progress: int, elapsed_s: float) -> None:
        """Show nothing."""

    def show_line(self, line: str) -> None:
        """Show nothing."""

    def line(self, records: Sequence[RequestRecord], in_progress: int, elapsed_s: float) -> str:
        """Return one line: the requests ended, failed and in progress, and the remaining time."""
        failed = sum(record.status not in ("ok", "cancelled") for record in records)
        remaining_s = self.remaining_s(len(records), elapsed_s)
        parts = [
            f"{len(records)} of {self._planned} requests ended"
            if self._duration_s is None
            else f"{len(records)} requests ended",
            f"{failed} failed" if failed else "",
            f"{in_progress} in progress",
            f"about {remaining_s:.0f} s left" if remaining_s else "",
        ]
        return f"{max(0.0, elapsed_s):5.1f} s  " + ", ".join(part for part in parts if part)

    def remaining_s(self, ended: int, elapsed_s: float) -> float | None:
        """Return the seconds to the last send or, in a closed loop, to the end at this pace."""
        if self._last_at_s is not None:
            return max(0.0, self._last_at_s - elapsed_s)
        left = [] if self._duration_s is None else [max(0.0, self._duration_s - elapsed_s)]
        if ended and elapsed_s > 0:
            left.append(elapsed_s / ended * (self._planned - ended))
        return min(left, default=None)

    def share(self, ended: int, elapsed_s: float) -> float:
        """Return the share of the load that is over, by its requests or its duration."""
        by_time = elapsed_s / self._duration_s if self._duration_s else 0.0
        return min(1.0, max(ended / self._planned if self._planned else 0.0, by_time))


class LineProgress(NoProgress):
    """Prints a line every few seconds, and one at the end."""

    def __enter__(self) -> Self:
        self._next = time.monotonic() + LINE_EVERY_S
        self._latest = ""
        print(f"  0.0 s  {self._title}", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._latest:
            print(self._latest, flush=True)

    def show(self, records: Sequence[RequestRecord], in_progress: int, elapsed_s: float) -> None:
        """Print a line if it is time for one."""
        self._latest = self.line(records, in_progress, elapsed_s)
        if time.monotonic() >= self._next:
            print(self._latest, flush=True)
            self._latest, self._next = "", time.monotonic() + LINE_EVERY_S

    def show_line(self, line: str) -> None:
        """Print a line now."""
        print(line, flush=True)


class LiveLineProgress(LineProgress):
    """Prints lines about a load that has no planned number of requests."""

    def __init__(self, running: LiveLoad) -> None:
        super().__init__(0, None, "")
        self._running, self._title = running, "starting load workers"

    def line(self, records: Sequence[RequestRecord], in_progress: int, elapsed_s: float) -> str:
        """Return the current line."""
        return self.now()

    def now(self) -> str:
        """Return one line, timed on the run's clock: the target rate and the requests so far."""
        running = self._running
        parts = [
            f"{running.rate:.1f} requests/s offered"
            if running.state != "starting"
            else self._title,
            f"{running.ended} ended",
            f"{running.failed} failed" if running.failed else "",
            f"{running.in_progress} in progress",
            f"{running.dropped} dropped" if running.dropped else "",
        ]
        return f"{running.clock():5.1f} s  " + ", ".join(part for part in parts if part)


class BarProgress(NoProgress):
    """A bar in the cell's output. It is not a widget, so that the notebook keeps it."""

    def __enter__(self) -> Self:
        from IPython import display

        untyped: Any = display
        self._html, self._lines = untyped.HTML, list[str]()
        first = self._render(0.0, "starting load workers")
        self._handle: Any = untyped.display(self._html(first), display_id=True)
        return self

    def show(self, records: Sequence[RequestRecord], in_progress: int, elapsed_s: float) -> None:
        """Update the bar."""
        share = self.share(len(records), elapsed_s)
        self._update(share, self.line(records, in_progress, elapsed_s))

    def show_line(self, line: str) -> None:
        """Add a line below the bar."""
        self._lines.append(line)
        self._update(*self._last)

    def _update(self, share: float, line: str) -> None:
        if self._handle is not None:
            self._handle.update(self._html(self._render(share, line)))

    def _render(self, share: float, line: str) -> str:
        self._last = (share, line)
        text = "<br>".join(html.escape(part) for part in (self._title, line, *self._lines))
        return (
            f'<progress value="{share:.4g}" max="1" style="width:24em"></progress>'
            f'<div style="font-variant-numeric:tabular-nums">{text}</div>'
        )
