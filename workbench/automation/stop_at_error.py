"""An extension of IPython: cells after one that failed do nothing.

Voilà runs every cell, also after an error, and each one that needs a missing name adds an error of
its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionResult, InteractiveShell


class StopAtError:
    """Remembers whether a cell has failed, and empties the cells after it."""

    def __init__(self) -> None:
        self._failed = False

    def after(self, result: ExecutionResult) -> None:
        """Note the result of a cell."""
        self._failed = self._failed or not result.success

    def transform(self, lines: list[str]) -> list[str]:
        """Return the lines of a cell that are to run."""
        return [] if self._failed else lines


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Add the extension to a shell."""
    stop = StopAtError()
    shell.events.register("post_run_cell", stop.after)
    shell.input_transformers_cleanup.append(stop.transform)
