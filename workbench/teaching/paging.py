"""The KV cache as a block table, compared with contiguous allocation: a small simulation.

Memory is a row of slots, each with room for one token. Both sides serve the same requests, which
all wait from the start, in the given order. In each step a running request adds one token. In
the step in which a request is admitted, its prompt and its first token are written at once. A
request that is complete is shown once more; its slots are free in the next step.

- Contiguous: a request is admitted if one gap holds its prompt and `reserve` more tokens, the
  longest possible answer, since its length is not known yet. The first gap that fits is used.
- Paged: a request is admitted if blocks for its prompt and first token are free, anywhere. It takes
  another block when its last one is full. If no block is free, the newest request is preempted: it
  returns to the front of the queue, and its tokens so far count as its prompt when it is admitted
  again, as vLLM preempts by recomputing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

FREE = -1


class PagingRequest(NamedTuple):
    """A simulated request: the tokens of its prompt, and the tokens that its answer will have."""

    prompt: int
    output: int


@dataclass
class Running:
    """A request in memory: its index, its tokens, and all its slots in order, written or not."""

    number: int
    request: PagingRequest
    slots: list[int]
    generated: int = 1

    @property
    def tokens(self) -> int:
        """Slots with a token in them."""
        return self.request.prompt + self.generated

    @property
    def ended(self) -> bool:
        """Whether the answer is complete."""
        return self.generated >= self.request.output


@dataclass(frozen=True)
class Moment:
    """Memory in one step.

    Attributes:
        owner: The request that holds each slot, or FREE.
        written: Whether each slot holds a token.
        tables: The blocks of each running request in the order of its tokens; contiguous memory
            has blocks of one slot.
        waiting: The requests in the queue.
        done: Number of requests that have ended.
        preempted: Number of preemptions so far.
    """

    owner: tuple[int, ...]
    written: tuple[bool, ...]
    tables: dict[int, tuple[int, ...]]
    waiting: tuple[int, ...]
    done: int
    preempted: int

    @property
    def held(self) -> int:
        """Slots that belong to a request."""
        return sum(owner != FREE for owner in self.owner)

    @property
    def used(self) -> int:
        """Slots with a token in them."""
        return sum(self.written)

    @property
    def waste(self) -> float:
        """Share of the held slots without a token; 0 if none is held."""
        return 1 - self.used / self.held if self.held else 0.0


@dataclass
class _Memory:
    slots: int
    block: int
    waiting: list[tuple[int, PagingRequest]]
    running: list[Running] = field(default_factory=list)
    done: int = 0
    preempted: int = 0

    def free(self) -> list[int]:
        """Return the numbers of the free blocks, in order."""
        taken = {slot // self.block for request in self.running for slot in request.slots}
        return [block for block in range(self.slots // self.block) if block not in taken]

    def slots_of(self, blocks: Sequence[int]) -> list[int]:
        """Return the slots of these blocks."""
        return [block * self.block + i for block in blocks for i in range(self.block)]

    def moment(self) -> Moment:
        owner, written = [FREE] * self.slots, [False] * self.slots
        for request in self.running:
            for position, slot in enumerate(request.slots):
                owner[slot], written[slot] = request.number, position < request.tokens
        tables = {
            request.number: tuple(dict.fromkeys(slot // self.block for slot in request.slots))
            for request in self.running
        }
        waiting = tuple(number for number, _ in self.waiting)
        return Moment(tuple(owner), tuple(written), tables, waiting, self.done, self.preempted)


def contiguous(requests: Sequence[PagingRequest], slots: int, reserve: int) -> list[Moment]:
    """Return each step of memory in which every request holds one stretch of slots.

    Args:
        requests: The requests in order.
        slots: The size of the memory in tokens.
        reserve: Slots reserved for each answer.

    Raises:
        ValueError: For a request that could never be admitted, or that outgrows its stretch.
    """
    for number, request in enumerate(requests):
        if request.output > reserve or request.prompt + reserve > slots:
            raise ValueError(
                f"request {number} = {tuple(request)} needs output <= reserve = {reserve} and "
                f"prompt + reserve <= slots = {slots}"
            )

    def admit(memory: _Memory, request: PagingRequest) -> list[int] | None:
        size, free = request.prompt + reserve, set(memory.free())
        starts = (s for s in range(slots - size + 1) if free.issuperset(range(s, s + size)))
        start = next(starts, None)
        return None if start is None else list(range(start, start + size))

    return list(_moments(_Memory(slots, 1, list(enumerate(requests))), admit, lambda memory: None))


def paged(requests: Sequence[PagingRequest], slots: int, block: int) -> list[Moment]:
    """Return each step of memory that is allocated in blocks, as tokens need them.

    Args:
        requests: The requests in order.
        slots: The size of the memory in tokens.
        block: Slots per block.

    Raises:
        ValueError: If `block` does not divide `slots`, or for a request longer than the memory.
    """
    if slots % block:
        raise ValueError(f"slots must be a multiple of block = {block}, got {slots}")
    for number, request in enumerate(requests):
        if request.prompt + request.output > slots:
            raise ValueError(f"request {number} = {tuple(request)} is longer than slots = {slots}")

    def admit(memory: _Memory, request: PagingRequest) -> list[int] | None:
        count, free = -(-(request.prompt + 1) // block), memory.free()
        return memory.slots_of(free[:count]) if len(free) >= count else None

    return list(_moments(_Memory(slots, block, list(enumerate(requests))), admit, _grow))


def _grow(memory: _Memory) -> None:
    """Give each request the block it needs, oldest first. If none is free, preempt the newest."""
    for request in list(memory.running):
        while request in memory.running and request.tokens >= len(request.slots):
            if free := memory.free():
                request.slots += memory.slots_of(free[:1])
            else:
                newest = memory.running.pop()
                rest = PagingRequest(newest.tokens, newest.request.output - newest.generated)
                memory.waiting.insert(0, (newest.number, rest))
                memory.preempted += 1


def _moments(
    memory: _Memory,
    admit: Callable[[_Memory, PagingRequest], list[int] | None],
    grow: Callable[[_Memory], None],
) -> Iterator[Moment]:
    while memory.waiting or memory.running:
        memory.done += sum(request.ended for request in memory.running)
        memory.running = [request for request in memory.running if not request.ended]
        grow(memory)
        for request in memory.running:
            request.generated += 1
        while memory.waiting and (slots := admit(memory, memory.waiting[0][1])) is not None:
            number, admitted = memory.waiting.pop(0)
            memory.running.append(Running(number, admitted, slots))
        if memory.running:
            yield memory.moment()
