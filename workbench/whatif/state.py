"""The state of a simulated fleet: tables, which the compiled functions read and write.

A function that is not inlined copies a table's header for each call, so there are few of them. A
request has an index into `Requests`. A replica has a slot, an index into `Replicas`, which
another replica takes over after its end. The queues are linked lists of request indices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Ints: TypeAlias = NDArray[Any]

FREE, STARTING, RUNNING, STOPPING = range(4)
PENDING, OK, SHED = range(3)
ROUND_ROBIN, POWER_OF_TWO, PREFIX_AWARE = range(3)

# Counters of the fleet, in `Fleet.counts`. ACTIVE, NEW and LEAVING count the slots whose replica
# runs, starts or stops.
(
    ARRIVED,
    LATER_SIZE,
    NEXT_SESSION,
    HANDLE_HEAD,
    HANDLE_TAIL,
    HANDLE_SIZE,
    IN_SYSTEM,
    TURN,
    DRAWS,
    SHEDS,
    PREEMPTIONS,
    STEPS,
    ACTIVE,
    STARTS,
    TARGET,
    DONE,
    PLANNED,
    SESSIONS,
    NEW,
    LEAVING,
) = range(20)


class Model(NamedTuple):
    """A replica: the times of a step and of the front end, and the limits of the scheduler."""

    step_s: float
    prefill_token_s: float
    running_s: float
    kv_token_s: float
    request_s: float
    prompt_token_s: float
    token_s: float
    token_budget: int
    max_seqs: int
    block_size: int
    blocks: int


class Gate(NamedTuple):
    """The limits of the gate. `composed`: requests wait in a deployment handle, not at replicas."""

    composed: int
    max_ongoing: int
    max_queued: int
    capacity: int
    routing: int


REQUEST = np.dtype(
    [
        ("due_s", "f8"),
        ("sent_s", "f8"),
        ("first_s", "f8"),
        ("end_s", "f8"),
        ("ready_s", "f8"),
        ("think_s", "f8"),
        ("later_s", "f8"),
        ("token_at", "i8"),
        ("later", "i4"),
        ("session", "i4"),
        ("prompt", "i4"),
        ("output", "i4"),
        ("group", "i4"),
        ("prefix", "i4"),
        ("successor", "i4"),
        ("replica", "i4"),
        ("computed", "i4"),
        ("generated", "i4"),
        ("blocks", "i4"),
        ("next", "i4"),
        ("status", "i4"),
    ],
    align=True,
)
"""A request. Times are seconds, lengths and counts are tokens and blocks; `token_at` is the index
of its first token in `Fleet.token_times`. `later`, `later_s` and `session` are not of the request:
they are columns for the later arrivals and for the sessions of a closed loop."""

REPLICA = np.dtype(
    [
        ("end_s", "f8"),
        ("step_from_s", "f8"),
        ("ready_s", "f8"),
        ("stop_s", "f8"),
        ("busy_s", "f8"),
        ("busy_from_s", "f8"),
        *(
            (name, "i8")
            for name in (
                *("state", "number", "heap", "place", "active", "used", "firsts"),
                *("batch", "steps", "most_steps", "decoding", "kv", "free", "written"),
                *("head", "tail", "waiting", "gate_head", "gate_tail", "queued", "ongoing"),
            )
        ),
    ],
    align=True,
)
"""A slot. `heap` and `active` are not of the slot: they are columns for the heap of the ends of
steps, and for the running replicas from the oldest to the newest."""

SEAT = np.dtype([("request", "i4"), ("tokens", "i4")])
PREFIX = np.dtype([("at", "i8"), ("tokens", "i8")])
FIRST = np.dtype([("at_s", "f8"), ("took_s", "f8")])


class Fleet(NamedTuple):
    """The tables of a simulation.

    `seats` has the batch of each slot and the tokens scheduled for its requests, `prefixes` what
    each slot has of each group in its cache, `firsts` the recent times to first token.
    """

    requests: Any
    replicas: Any
    seats: Any
    prefixes: Any
    firsts: Any
    token_times: Floats
    draws: Floats
    counts: Ints


RECENT_FIRSTS = 256
"""Times to first token that a replica remembers for the policy on TTFT."""


def empty_fleet(
    requests: Any,
    *,
    sessions: int,
    token_times: Floats,
    draws: Floats,
    slots: int,
    seats: int,
    groups: int,
    blocks: int,
    firsts: int,
) -> Fleet:
    """Return a fleet of free slots in which nothing has happened yet.

    Args:
        requests: The table of requests.
        sessions: Sessions of a closed loop that wait for a user.
        token_times: Room for the time of every token, or nothing.
        draws: Random numbers from 0 to 1.
        slots: Replicas that can exist at once.
        seats: Requests in the batch of a replica at most.
        groups: Prefixes that prompts share.
        blocks: Blocks of a replica's KV cache.
        firsts: Times to first token that a replica remembers.
    """
    replicas = np.zeros(slots, REPLICA)
    replicas["end_s"] = np.inf
    replicas["number"] = -1
    replicas["free"] = blocks
    replicas["heap"] = replicas["place"] = np.arange(slots)
    prefixes = np.zeros((slots, groups), PREFIX)
    prefixes["at"] = -1
    recent = np.zeros((slots, firsts), FIRST)
    recent["at_s"] = -np.inf
    counts = np.zeros(LEAVING + 1, np.int64)
    counts[[HANDLE_HEAD, HANDLE_TAIL]] = -1
    counts[PLANNED] = np.isfinite(requests["due_s"]).sum()
    counts[SESSIONS] = sessions
    return Fleet(
        requests=requests.view(np.recarray),
        replicas=replicas.view(np.recarray),
        seats=np.zeros((slots, seats), SEAT).view(np.recarray),
        prefixes=prefixes.view(np.recarray),
        firsts=recent.view(np.recarray),
        token_times=token_times,
        draws=draws,
        counts=counts,
    )
