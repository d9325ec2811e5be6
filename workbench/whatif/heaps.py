"""Binary heaps in fields of the tables: the next ends of steps, and the later arrivals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.whatif._compiled import inner
from workbench.whatif.state import LATER_SIZE

if TYPE_CHECKING:
    from workbench.whatif.state import Fleet


@inner
def set_end(fleet: Fleet, slot: int, end_s: float) -> None:
    """Set when the step of a slot ends; `replicas[0].heap` is the slot whose step ends first."""
    replicas = fleet.replicas
    replicas[slot].end_s = end_s
    at = replicas[slot].place
    while at > 0:
        above = replicas[(at - 1) // 2].heap
        if replicas[above].end_s <= end_s:
            break
        replicas[at].heap, replicas[above].place = above, at
        at = (at - 1) // 2
    while 2 * at + 1 < len(replicas):
        child = 2 * at + 1
        below = replicas[child].heap
        if child + 1 < len(replicas):
            other = replicas[child + 1].heap
            if replicas[other].end_s < replicas[below].end_s:
                child, below = child + 1, other
        if replicas[below].end_s >= end_s:
            break
        replicas[at].heap, replicas[below].place = below, at
        at = child
    replicas[at].heap, replicas[slot].place = slot, at


@inner
def push_later(fleet: Fleet, request: int, due_s: float) -> None:
    """Let a request arrive at `due_s`, because one that it follows has ended."""
    heap = fleet.requests
    at = fleet.counts[LATER_SIZE]
    fleet.counts[LATER_SIZE] += 1
    heap[request].due_s = due_s
    while at > 0 and heap[(at - 1) // 2].later_s > due_s:
        above = (at - 1) // 2
        heap[at].later_s, heap[at].later = heap[above].later_s, heap[above].later
        at = above
    heap[at].later_s, heap[at].later = due_s, request


@inner
def pop_later(fleet: Fleet) -> int:
    """Remove the earliest of the later arrivals and return its request."""
    heap = fleet.requests
    first = heap[0].later
    fleet.counts[LATER_SIZE] -= 1
    size = fleet.counts[LATER_SIZE]
    key_s, value, at = heap[size].later_s, heap[size].later, 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1].later_s < heap[child].later_s:
            child += 1
        if heap[child].later_s >= key_s:
            break
        heap[at].later_s, heap[at].later = heap[child].later_s, heap[child].later
        at = child
    heap[at].later_s, heap[at].later = key_s, value
    return int(first)
