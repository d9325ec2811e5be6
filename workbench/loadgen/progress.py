"""How far a load is: a bar for a person, lines for a pipeline, and an estimate of the rest."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from workbench.errors import SettingError

if TYPE_CHECKING:
    from workbench.loadgen.handle import LiveLoad
    from workbench.records import RequestRecord
    from workbench.workload.spec import LoadSpec, Session

LINE_EVERY_S = 5.0


class Progress(Protocol):
    """What a load tells of itself while it goes."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def show(
        self, records: Sequence[RequestRecord], in_progress: int, elapsed_s: float
    ) -> None: ...

    def say(self, line: str) -> None: ...


def make_progress(
    kind: Progress | str | None, load: LoadSpec, sessions: Sequence[Session]
) -> Progress:
    """The progress that `kind` names. Raises SettingError for a name that is none."""
    if kind is not None and not isinstance(kind, str):
        return kind
    kinds = {"bar": BarProgress, "lines": LineProgress, None: NoProgress}
    if kind not in kinds:
        raise SettingError(f"progress is {kind!r}: give 'bar', 'lines' or None")
    planned = sum(len(session.turns) for session in sessions)
    return kinds[kind](planned, sessions[-1].at_s, _what(load))


def _what(load: LoadSpec) -> str:
    arrivals = load.arrivals
    if arrivals.kind == "closed":
        return f"{arrivals.max_concurrency} at a time"
    rate = getattr(arrivals, "rate", None)
    return "" if rate is None else f"{rate:g} a second"


class NoProgress:
    """Says nothing; the others build on what it counts."""

    def __init__(self, planned: int, last_at_s: float | None, what: str) -> None:
        self._planned = planned
        self._last_at_s = last_at_s
        self._title = f"sending {planned} requests" + (f", {what}" if what else "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, records: Sequence[RequestRecord], in_progress: int, elapsed_s: float) -> None:
        return

    def say(self, line: str) -> None:
        return

    def line(self, records: Sequence[RequestRecord], in_progress: int, elapsed_s: float) -> str:
        """One line: what ended, what failed, what is in progress, and about how much is left."""
        failed = sum(record.status != "ok" for record in records)
        left = self.left_s(len(records), elapsed_s)
        parts = [
            f"{len(records)} of {self._planned} requests ended",
            f"{failed} of them not well" if failed else "",
            f"{in_progress} in progress",
            "" if not left else f"about {left:.0f} s left",
        ]
        return f"{max(0.0, elapsed_s):5.1f} s  " + ", ".join(part for part in parts if part)

    def left_s(self, ended: int, elapsed_s: float) -> float | None:
        """Seconds to the last send; in a closed loop, at the pace so far."""
        if self._last_at_s is not None:
            return max(0.0, self._last_at_s - elapsed_s)
        return elapsed_s / ended * (self._planned - ended) if ended and elapsed_s > 0 else None


class LineProgress(NoProgress):
    """A line every few seconds, and one at the end."""

    def __enter__(self) -> Self:
        self._next = time.monotonic() + LINE_EVERY_S
        self._latest = ""
        print(f"  0.0 s  {self._title}", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._latest:
            print(self._latest, flush=True)

    def show(self, records: Sequence[RequestRecord], in_progress: int, elapsed_s: float) -> None:
        self._latest = self.line(records, in_progress, elapsed_s)
        if time.monotonic() >= self._next:
            print(self._latest, flush=True)
            self._latest, self._next = "", time.monotonic() + LINE_EVERY_S

    def say(self, line: str) -> None:
        print(line, flush=True)


class LiveLines(LineProgress):
    """Lines of a load that has no planned number of requests."""

    def __init__(self, running: LiveLoad) -> None:
        super().__init__(0, None, "")
        self._running, self._title = running, "starting load workers"

    def line(self, records: Sequence[RequestRecord], in_progress: int, elapsed_s: float) -> str:
        return self.now()

    def now(self) -> str:
        """One line, timed on the run's clock: what is offered, and what became of it."""
        running = self._running
        parts = [
            f"{running.rate:.1f} requests/s offered"
            if running.state != "starting"
            else self._title,
            f"{running.ended} ended",
            f"{running.not_well} of them not well" if running.not_well else "",
            f"{running.in_progress} in progress",
            f"{running.left_out} left out" if running.left_out else "",
        ]
        return f"{running.clock():5.1f} s  " + ", ".join(part for part in parts if part)


def live_progress(kind: Progress | str | None, running: LiveLoad) -> Progress:
    """The progress that `kind` names, of a live load. Raises SettingError for a name that is none.

    A bar would need an end that is known.
    """
    if kind is not None and not isinstance(kind, str):
        return kind
    if kind not in ("lines", None):
        raise SettingError(f"progress is {kind!r}: give 'lines' or None for a live load")
    return LiveLines(running) if kind else NoProgress(0, None, "")


class BarProgress(NoProgress):
    """A bar in the cell's output, drawn anew in place; no widget, so that it can be saved."""

    def __enter__(self) -> Self:
        from IPython import display

        shown: Any = display  # untyped
        self._html, self._said = shown.HTML, list[str]()
        first = self._drawn(0, "starting load workers")
        self._handle: Any = shown.display(self._html(first), display_id=True)
        return self

    def show(self, records: Sequence[RequestRecord], in_progress: int, elapsed_s: float) -> None:
        self._update(len(records), self.line(records, in_progress, elapsed_s))

    def say(self, line: str) -> None:
        self._said.append(line)
        self._update(*self._last)

    def _update(self, ended: int, line: str) -> None:
        self._last = (ended, line)
        if self._handle is not None:
            self._handle.update(self._html(self._drawn(ended, line)))

    def _drawn(self, ended: int, line: str) -> str:
        self._last = (ended, line)
        text = "<br>".join(html.escape(part) for part in (self._title, line, *self._said))
        return (
            f'<progress value="{ended}" max="{self._planned}" style="width:24em"></progress>'
            f'<div style="font-variant-numeric:tabular-nums">{text}</div>'
        )
