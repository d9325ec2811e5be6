"""Static and continuous batching as a table of slots and steps: small enough to follow.

A slot is a row of the batch; in each step every row that is at work makes one token, and a step
takes as long whether a row works or not: it is the weights that are read, once for all rows.
Requests are there from the start and are taken in their order; prompts cost nothing here.

- Static: the first `slots` requests start together, and the next ones when all of them have ended.
- Continuous: a row that has ended goes to the next request at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

IDLE = -1


@dataclass(frozen=True)
class Table:
    """`cells[step][slot]` is the request that makes a token there, or IDLE."""

    cells: tuple[tuple[int, ...], ...]

    @property
    def steps(self) -> int:
        """Steps until the last request has ended."""
        return len(self.cells)

    @property
    def tokens(self) -> int:
        """Tokens made."""
        return self.tokens_by(self.steps)

    @property
    def idle(self) -> int:
        """Rows of a step that made nothing."""
        return sum(one == IDLE for row in self.cells for one in row)

    @property
    def efficiency(self) -> float:
        """The share of rows that made a token."""
        return self.tokens / (self.tokens + self.idle)

    def tokens_by(self, steps: int) -> int:
        """Tokens made in the first so many steps."""
        return sum(one != IDLE for row in self.cells[:steps] for one in row)

    def ends(self) -> dict[int, int]:
        """The step after which each request has its whole answer, counted from 1."""
        return {one: step for step, row in enumerate(self.cells, 1) for one in row if one != IDLE}


def static(lengths: Sequence[int], slots: int) -> Table:
    """Batches of `slots` requests, each as long as its longest. Lengths are tokens, at least 1."""
    _check(lengths, slots)
    rows: list[tuple[int, ...]] = []
    for first in range(0, len(lengths), slots):
        batch = lengths[first : first + slots]
        for step in range(max(batch)):
            at_work = [first + i if step < length else IDLE for i, length in enumerate(batch)]
            rows.append((*at_work, *[IDLE] * (slots - len(batch))))
    return Table(tuple(rows))


def continuous(lengths: Sequence[int], slots: int) -> Table:
    """Every free row takes the next request, step by step."""
    _check(lengths, slots)
    line, left = list(range(len(lengths))), list(lengths)
    rows: list[tuple[int, ...]] = []
    holders = [IDLE] * slots
    while line or any(one != IDLE for one in holders):
        for slot, one in enumerate(holders):
            if one == IDLE and line:
                holders[slot] = line.pop(0)
        rows.append(tuple(holders))
        for slot, one in enumerate(holders):
            if one != IDLE:
                left[one] -= 1
                holders[slot] = one if left[one] else IDLE
    return Table(tuple(rows))


def _check(lengths: Sequence[int], slots: int) -> None:
    if not lengths or min(lengths) < 1 or slots < 1:
        raise ValueError(
            f"lengths = {list(lengths)[:8]} and slots = {slots}: give at least one length, "
            "and 1 or more of each"
        )
