"""Static and continuous batching as a table of slots and steps.

A slot is a row of the batch. In each step, every busy slot produces one token. A step takes equally
long whether a slot is busy or idle, because the time goes into reading the weights, once for all
slots. All requests wait from the start and are taken in order. Prompts cost nothing.

- Static: `slots` requests start together. The next ones start when all of them have ended.
- Continuous: a free slot takes the next request at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

IDLE = -1


@dataclass(frozen=True)
class Table:
    """The slots over time: `cells[step][slot]` is the index of the request, or IDLE."""

    cells: tuple[tuple[int, ...], ...]

    @property
    def steps(self) -> int:
        """Steps until the last request has ended."""
        return len(self.cells)

    @property
    def tokens(self) -> int:
        """Tokens produced."""
        return self.tokens_by(self.steps)

    @property
    def idle(self) -> int:
        """Cells in which a slot produced nothing."""
        return sum(request == IDLE for row in self.cells for request in row)

    @property
    def efficiency(self) -> float:
        """Share of the cells that produced a token."""
        return self.tokens / (self.tokens + self.idle)

    def tokens_by(self, steps: int) -> int:
        """Return the number of tokens produced in the first `steps` steps."""
        return sum(request != IDLE for row in self.cells[:steps] for request in row)

    def ends(self) -> dict[int, int]:
        """Return the step, counted from 1, after which each request is complete."""
        return {
            request: step
            for step, row in enumerate(self.cells, 1)
            for request in row
            if request != IDLE
        }


def static(lengths: Sequence[int], slots: int) -> Table:
    """Return the table of static batching: each batch takes as long as its longest request.

    Args:
        lengths: Output tokens of each request, at least 1.
        slots: Requests per batch.

    Raises:
        ValueError: If there are no requests, or a length or `slots` is below 1.
    """
    _check(lengths, slots)
    rows: list[tuple[int, ...]] = []
    for first in range(0, len(lengths), slots):
        batch = lengths[first : first + slots]
        for step in range(max(batch)):
            busy = [first + i if step < length else IDLE for i, length in enumerate(batch)]
            rows.append((*busy, *[IDLE] * (slots - len(batch))))
    return Table(tuple(rows))


def continuous(lengths: Sequence[int], slots: int) -> Table:
    """Return the table of continuous batching: a free slot takes the next request.

    Args:
        lengths: Output tokens of each request, at least 1.
        slots: Requests in the batch at most.

    Raises:
        ValueError: If there are no requests, or a length or `slots` is below 1.
    """
    _check(lengths, slots)
    queue, remaining = list(range(len(lengths))), list(lengths)
    rows: list[tuple[int, ...]] = []
    running = [IDLE] * slots
    while queue or any(request != IDLE for request in running):
        for slot, request in enumerate(running):
            if request == IDLE and queue:
                running[slot] = queue.pop(0)
        rows.append(tuple(running))
        for slot, request in enumerate(running):
            if request != IDLE:
                remaining[request] -= 1
                running[slot] = request if remaining[request] else IDLE
    return Table(tuple(rows))


def _check(lengths: Sequence[int], slots: int) -> None:
    if not lengths or min(lengths) < 1 or slots < 1:
        raise ValueError(
            "lengths must hold at least one length, and each length and slots must be at least 1, "
            f"got lengths = {list(lengths)[:8]} and slots = {slots}"
        )
