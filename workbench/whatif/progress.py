"""Show how many settings have been simulated: a bar for a person, lines for a pipeline."""

from __future__ import annotations

import time
from typing import Any, Self

from workbench.errors import SettingError

LINE_EVERY_S = 5.0


class Progress:
    """Counts what is done, and shows nothing."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._started = total, 0, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the display."""

    def add(self, count: int) -> None:
        """Count more that is done."""
        self._done += count

    def line(self) -> str:
        """Return one line: how many are done, and in which time."""
        elapsed_s = time.monotonic() - self._started
        return f"{elapsed_s:5.1f} s  {self._done} of {self._total} settings simulated"


class LineProgress(Progress):
    """Prints a line every few seconds, and one at the end."""

    def __enter__(self) -> Self:
        self._next_s = time.monotonic() + LINE_EVERY_S
        return self

    def __exit__(self, *_: object) -> None:
        print(self.line(), flush=True)

    def add(self, count: int) -> None:
        """Count, and print a line if it is time for one."""
        super().add(count)
        if time.monotonic() >= self._next_s and self._done < self._total:
            print(self.line(), flush=True)
            self._next_s = time.monotonic() + LINE_EVERY_S


class BarProgress(Progress):
    """A bar in the cell's output. It is not a widget, so that the notebook keeps it."""

    def __enter__(self) -> Self:
        from IPython import display

        untyped: Any = display
        self._html = untyped.HTML
        self._handle: Any = untyped.display(self._html(self._bar()), display_id=True)
        return self

    def add(self, count: int) -> None:
        """Count, and update the bar."""
        super().add(count)
        if self._handle is not None:
            self._handle.update(self._html(self._bar()))

    def _bar(self) -> str:
        return (
            f'<progress value="{self._done}" max="{self._total}" style="width:24em"></progress>'
            f'<div style="font-variant-numeric:tabular-nums">{self.line()}</div>'
        )


def make_progress(kind: str | None, total: int) -> Progress:
    """Return the progress of a kind: 'bar', 'lines' or None.

    Raises:
        SettingError: There is no such progress.
    """
    kinds: dict[str | None, type[Progress]] = {
        "bar": BarProgress,
        "lines": LineProgress,
        None: Progress,
    }
    if kind not in kinds:
        raise SettingError(f"progress must be 'bar', 'lines' or None, got {kind!r}")
    return kinds[kind](total)
