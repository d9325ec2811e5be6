"""The KV cache as a block table, beside contiguous allocation: a simulation small enough to follow.

Memory is a row of slots, each the room of one token. Both sides serve the same requests in the
order given, all there from the start; nobody overtakes. In each step a running request adds one
token; in the step in which it is let in, its prompt and its first token come at once. When it has
all of its output it is shown once more, and its slots are free for the next step.

- Contiguous: a request is let in where one gap holds its prompt and `reserve` more tokens, as long
  as an answer may become: nobody knows yet how long it will be. First gap that fits.
- Paged: a request is let in when blocks for its prompt and first token are free, anywhere, and
  takes another block when its last is full. If none is free, the newest request is put back to the
  head of the line, and what it has made so far counts as its prompt when it comes back, as vLLM
  preempts by recomputing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

FREE = -1


class Wanted(NamedTuple):
    """A request: tokens of its prompt, and tokens that its answer will turn out to have."""

    prompt: int
    output: int


@dataclass
class Running:
    """A request in memory: its number, what it wants, tokens made so far, and its slots in order.

    `slots` are all that it holds, written or not.
    """

    number: int
    wanted: Wanted
    slots: list[int]
    made: int = 1

    @property
    def tokens(self) -> int:
        """Slots with a token in them."""
        return self.wanted.prompt + self.made

    @property
    def ended(self) -> bool:
        return self.made >= self.wanted.output


@dataclass(frozen=True)
class Moment:
    """Memory in one step. `owner` is the request that holds each slot, or FREE.

    `written` says which slots have a token; `tables` are the blocks of each running request in the
    order of its tokens (of one slot each where memory is contiguous); `done` counts the ended.
    """

    owner: tuple[int, ...]
    written: tuple[bool, ...]
    tables: dict[int, tuple[int, ...]]
    waiting: tuple[int, ...]
    done: int
    preempted: int

    @property
    def held(self) -> int:
        """Slots that nobody else can have."""
        return sum(one != FREE for one in self.owner)

    @property
    def used(self) -> int:
        """Slots with a token in them."""
        return sum(self.written)

    @property
    def waste(self) -> float:
        """The share of held slots without a token; 0 where nothing is held."""
        return 1 - self.used / self.held if self.held else 0.0


@dataclass
class _Memory:
    slots: int
    block: int
    waiting: list[tuple[int, Wanted]]
    running: list[Running] = field(default_factory=list)
    done: int = 0
    preempted: int = 0

    def free(self) -> list[int]:
        """Numbers of the free blocks, in order."""
        taken = {slot // self.block for one in self.running for slot in one.slots}
        return [block for block in range(self.slots // self.block) if block not in taken]

    def spread(self, blocks: Sequence[int]) -> list[int]:
        """The slots of these blocks."""
        return [block * self.block + i for block in blocks for i in range(self.block)]

    def moment(self) -> Moment:
        owner, written = [FREE] * self.slots, [False] * self.slots
        for one in self.running:
            for place, slot in enumerate(one.slots):
                owner[slot], written[slot] = one.number, place < one.tokens
        tables = {
            one.number: tuple(dict.fromkeys(slot // self.block for slot in one.slots))
            for one in self.running
        }
        line = tuple(number for number, _ in self.waiting)
        return Moment(tuple(owner), tuple(written), tables, line, self.done, self.preempted)


def contiguous(requests: Sequence[Wanted], slots: int, reserve: int) -> list[Moment]:
    """Each step of memory in which every request holds one stretch of prompt + `reserve` slots.

    Raises ValueError for a request that could never be let in, or that outgrows its stretch.
    """
    for number, one in enumerate(requests):
        if one.output > reserve or one.prompt + reserve > slots:
            raise ValueError(
                f"request {number} = {tuple(one)} needs output <= reserve = {reserve} and prompt + "
                f"reserve <= slots = {slots}"
            )

    def enter(memory: _Memory, wanted: Wanted) -> list[int] | None:
        need, free = wanted.prompt + reserve, set(memory.free())
        starts = (s for s in range(slots - need + 1) if free.issuperset(range(s, s + need)))
        start = next(starts, None)
        return None if start is None else list(range(start, start + need))

    return list(_moments(_Memory(slots, 1, list(enumerate(requests))), enter, lambda memory: None))


def paged(requests: Sequence[Wanted], slots: int, block: int) -> list[Moment]:
    """Each step of memory that is given out in blocks of `block` slots, as tokens need them.

    Raises ValueError where `block` does not divide `slots`, and for a request that could never end.
    """
    if slots % block:
        raise ValueError(f"slots = {slots} is no multiple of block = {block}")
    for number, one in enumerate(requests):
        if one.prompt + one.output > slots:
            raise ValueError(f"request {number} = {tuple(one)} is longer than slots = {slots}")

    def enter(memory: _Memory, wanted: Wanted) -> list[int] | None:
        need, free = -(-(wanted.prompt + 1) // block), memory.free()
        return memory.spread(free[:need]) if len(free) >= need else None

    return list(_moments(_Memory(slots, block, list(enumerate(requests))), enter, _grow))


def _grow(memory: _Memory) -> None:
    """A block more for whom the next token finds none; the newest gives way, the oldest last."""
    for one in list(memory.running):
        while one in memory.running and one.tokens >= len(one.slots):
            if free := memory.free():
                one.slots += memory.spread(free[:1])
            else:
                newest = memory.running.pop()
                rest = Wanted(newest.tokens, newest.wanted.output - newest.made)
                memory.waiting.insert(0, (newest.number, rest))
                memory.preempted += 1


def _moments(
    memory: _Memory,
    enter: Callable[[_Memory, Wanted], list[int] | None],
    grow: Callable[[_Memory], None],
) -> Iterator[Moment]:
    while memory.waiting or memory.running:
        memory.done += sum(one.ended for one in memory.running)
        memory.running = [one for one in memory.running if not one.ended]
        grow(memory)
        for one in memory.running:
            one.made += 1
        while memory.waiting and (slots := enter(memory, memory.waiting[0][1])) is not None:
            number, wanted = memory.waiting.pop(0)
            memory.running.append(Running(number, wanted, slots))
        if memory.running:
            yield memory.moment()
