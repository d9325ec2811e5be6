"""What each replica did over time: a row per replica, with a segment per state. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from workbench.quantities import NONE, quantity, significant

if TYPE_CHECKING:
    import pandas as pd

LaneState = Literal["starting", "serving", "idle", "draining"]
LANE_STATES: tuple[LaneState, ...] = ("starting", "serving", "idle", "draining")
IDLE_AFTER_S = 3.0
"""Seconds without a request after which a replica counts as idle."""
LOST_AFTER_S = 3.5
"""Seconds without a sample after which a segment ends. Samples come once per second."""
MAX_SEGMENTS = 60
"""Segments that are kept per row. The oldest ones are merged."""
_SERVE_STATES: dict[Any, LaneState] = {"starting": "starting", "stopping": "draining"}
_SHORT = 8


@dataclass
class Segment:
    """A time in which a replica was in one state, in seconds since the start of the run."""

    replica: str
    state: LaneState
    start_s: float
    end_s: float


@dataclass
class Lane:
    """A row of segments: of one replica, or of several that ran one after the other.

    Attributes:
        replica: The latest replica.
        node: Its node.
        latest: What its engine reported last: requests in the batch, requests waiting, and the
            used part of the KV cache.
        busy_s: When it last had a request.
        segments: The segments in order.
    """

    replica: str
    node: str
    busy_s: float
    latest: tuple[int | None, int | None, float | None] = (None, None, None)
    segments: list[Segment] = field(default_factory=list)

    @property
    def seen_s(self) -> float:
        """When the replica was last sampled."""
        return self.segments[-1].end_s

    def load(self) -> str:
        """Return the latest requests and the KV cache in a few characters: "3 + 1 · 12%"."""
        running, waiting, kv_cache = self.latest
        if running is None:
            return ""
        return f"{running} + {waiting or 0} · {quantity(kv_cache, 'share')}"

    def add(self, state: LaneState, time_s: float) -> None:
        """Extend the last segment, or begin another one."""
        last = self.segments[-1] if self.segments else None
        if last is not None and self._continues(last, time_s):
            last.end_s = time_s
            if last.state == state:
                return
        self.segments.append(Segment(self.replica, state, time_s, time_s))
        if len(self.segments) > MAX_SEGMENTS:
            first, second = self.segments[:2]
            second.start_s = first.start_s
            del self.segments[0]

    def _continues(self, last: Segment, time_s: float) -> bool:
        return last.replica == self.replica and time_s - last.end_s <= LOST_AFTER_S


class Lanes:
    """Takes the samples of replicas in order of time, and arranges them in rows."""

    def __init__(self) -> None:
        self.rows: list[Lane] = []

    @classmethod
    def of(cls, samples: pd.DataFrame) -> Lanes:
        """Return the rows of a frame of replica samples."""
        lanes = cls()
        for row in samples.to_dict("records"):
            lanes.observe(**{str(name): _known(value) for name, value in row.items()})
        return lanes

    def observe(
        self,
        *,
        time_s: float,
        replica: str,
        node: str,
        state: str | None = None,
        running_requests: float | None = None,
        waiting_requests: float | None = None,
        kv_cache_usage: float | None = None,
        **_: Any,
    ) -> None:
        """Count one sample; the arguments are the fields of `ReplicaSample`."""
        lane = self._row(replica, node, time_s)
        if running_requests is not None:
            lane.latest = (int(running_requests), int(waiting_requests or 0), kv_cache_usage)
            if running_requests or waiting_requests:
                lane.busy_s = time_s
        idle = running_requests is not None and time_s - lane.busy_s >= IDLE_AFTER_S
        lane.add(_SERVE_STATES.get(state, "idle" if idle else "serving"), time_s)

    def segments(self, state: LaneState) -> Iterator[tuple[int, Segment]]:
        """Yield the segments in `state` with the numbers of their rows, from 0."""
        for number, lane in enumerate(self.rows):
            yield from ((number, segment) for segment in lane.segments if segment.state == state)

    def _row(self, replica: str, node: str, time_s: float) -> Lane:
        for lane in self.rows:
            if lane.replica == replica:
                return lane
        for lane in self.rows:
            if time_s - lane.seen_s > LOST_AFTER_S:
                lane.replica, lane.node, lane.busy_s = replica, node, time_s
                lane.latest = (None, None, None)
                return lane
        self.rows.append(Lane(replica, node, time_s))
        return self.rows[-1]


def short(identifier: str) -> str:
    """Return the beginning of a long identifier."""
    return identifier[:_SHORT]


def lane_texts(samples: pd.DataFrame) -> Iterator[tuple[float, list[str]]]:
    """Yield each time of the replica samples with a line per replica."""
    at_s, lines = float("nan"), list[str]()
    for row in samples.to_dict("records"):
        if row["time_s"] != at_s:
            if lines:
                yield at_s, lines
            at_s, lines = row["time_s"], []
        lines.append(_text(row))
    if lines:
        yield at_s, lines


def _text(row: dict[Any, Any]) -> str:
    running, waiting, kv_cache = (
        _known(row.get(name)) for name in ("running_requests", "waiting_requests", "kv_cache_usage")
    )
    where = f"{short(row['replica'])} on {short(row['node'])}"
    if running is None:
        return f"{where}: {_known(row.get('state')) or NONE}"
    queue = significant(_whole(waiting))
    return f"{where}: {running:.0f} + {queue} waiting, KV cache {quantity(kv_cache, 'share')}"


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _known(value: Any) -> Any:
    return None if value is None or value != value else value
