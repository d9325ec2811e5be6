"""The numbers at the top of the dashboard, each with its level and its recent values."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from workbench.dashboard.tally import Tally
from workbench.metrics.health import HealthBounds
from workbench.quantities import NONE, quantity, significant

if TYPE_CHECKING:
    from workbench.figures.cluster_frames import Frames
    from workbench.loadgen.handle import LiveLoad

Level: TypeAlias = Literal["good", "near", "bad", "none"]
SPARK_POINTS = 60
NEAR = 0.8
"""From this part of its bound on, a latency is near it."""


@dataclass(frozen=True)
class Tile:
    """A number with its explanation.

    `level` compares it with the SLO or a bound; `number` is what the sparkline shows.
    """

    label: str
    value: str
    detail: str
    level: Level = "none"
    number: float | None = None


class Tiles:
    """The tiles, with the latest values of each for its sparkline."""

    def __init__(self) -> None:
        self._recent: dict[str, deque[float | None]] = defaultdict(
            lambda: deque(maxlen=SPARK_POINTS)
        )

    def update(
        self, running: LiveLoad | None, frames: Frames, tally: Tally
    ) -> list[dict[str, Any]]:
        """Return the tiles as the page gets them."""
        tiles = [
            _attainment(tally),
            _ttft(frames),
            _offered(running),
            _achieved(frames, tally),
            _replicas(frames),
            _cost(frames),
            _health(running, tally),
        ]
        for tile in tiles:
            self._recent[tile.label].append(tile.number)
        return [asdict(tile) | {"recent": [*self._recent[tile.label]]} for tile in tiles]


def _attainment(tally: Tally) -> Tile:
    label = "SLO attainment"
    if tally.slo is None:
        return Tile(label, NONE, "no SLO was given")
    share, target = tally.recent_share, quantity(tally.slo.target, "share")
    if share is None:
        return Tile(label, NONE, f"target {target}")
    level: Level = "good" if share >= tally.slo.target else "bad"
    detail = f"last minute; run {quantity(tally.share, 'share')}, target {target}"
    return Tile(label, quantity(share, "share"), detail, level, share)


def _ttft(frames: Frames) -> Tile:
    value = _last(frames.requests, "ttft_p99_ms")
    bound = None if frames.slo is None else frames.slo.bounds().get("ttft_ms")
    level: Level = "none"
    if value is not None and bound is not None:
        level = "bad" if value > bound else "near" if value > NEAR * bound else "good"
    median = quantity(_last(frames.requests, "ttft_p50_ms"), "ms")
    detail = f"p50 {median}" + ("" if bound is None else f", SLO {quantity(bound, 'ms')}")
    return Tile("TTFT p99", quantity(value, "ms"), detail, level, value)


def _offered(running: LiveLoad | None) -> Tile:
    if running is None:
        return Tile("Offered", NONE, "requests/s")
    detail = f"requests/s; {significant(running.in_progress)} in flight"
    return Tile("Offered", f"{running.rate:.1f}", detail, number=round(running.rate, 2))


def _achieved(frames: Frames, tally: Tally) -> Tile:
    value, failed = _last(frames.requests, "achieved"), tally.failed
    detail = f"requests/s; {significant(tally.ok)} completed, {significant(failed)} failed"
    text = NONE if value is None else f"{value:.1f}"
    failing = any(_last(frames.requests, name) for name in ("failed", "shed"))
    return Tile("Achieved", text, detail, "bad" if failing else "none", value)


def _replicas(frames: Frames) -> Tile:
    samples = frames.samples("deployment")
    if samples.empty:
        return Tile("Replicas", NONE, "no sample yet")
    last = samples[samples.time_s == samples.time_s.iloc[-1]]
    counts = {
        name: float(last[name].sum()) for name in ("running", "target", "starting", "stopping")
    }
    parts = [f"target {counts['target']:g}"]
    parts += [f"{counts[name]:g} {name}" for name in ("starting", "stopping") if counts[name]]
    return Tile("Replicas", f"{counts['running']:g}", ", ".join(parts), number=counts["running"])


def _cost(frames: Frames) -> Tile:
    label = "$ per 1M tokens"
    if frames.cost.empty:
        return Tile(label, NONE, "no price or no replica")
    value = _last(frames.cost, "per_million")
    per_hour, so_far = (_last(frames.cost, name) for name in ("per_hour", "so_far"))
    detail = f"{quantity(per_hour, '$')}/hour, {quantity(so_far, '$')} so far"
    return Tile(label, quantity(value, "$"), detail, number=value)


def _health(running: LiveLoad | None, tally: Tally) -> Tile:
    lag_ms, bound_ms = tally.send_lag_p99_ms, HealthBounds().send_lag_p99_ms
    dropped = 0 if running is None else running.dropped
    detail = f"send lag p99 {quantity(lag_ms, 'ms')}, {significant(dropped)} dropped"
    if lag_ms is None:
        return Tile("Client health", NONE, detail, "bad" if dropped else "none")
    limited = lag_ms > bound_ms or dropped > 0
    text, level = ("limited", "bad") if limited else ("ok", "good")
    return Tile("Client health", text, detail, level, round(lag_ms, 3))  # type: ignore[arg-type]


def _last(rows: Any, column: str) -> float | None:
    """Return the last value of a column; None if there is none."""
    value = float(rows[column].iloc[-1]) if len(rows) else float("nan")
    return None if value != value else value
