"""The analysis of a soak test: figures and a plot of its requests, faults and process samples.

Times are seconds on the test's clock. The first quarter runs without faults.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

LEVELS = ("files", "tasks", "sockets")
MIN_REQUESTS = 20
"""A percentile of fewer requests is not reported."""


@dataclass(frozen=True)
class Request:
    """A request as its client saw it. `first_s` is the arrival of the first token, if streamed."""

    path: str
    kind: str
    sent_s: float
    first_s: float | None
    end_s: float
    ok: bool
    error: str | None = None


@dataclass
class Fault:
    """A fault, and when all was well again; None if that never happened."""

    name: str
    at_s: float
    recovered_s: float | None = None

    def affects(self, request: Request) -> bool:
        """Return whether a request was in progress between the fault and the recovery."""
        return request.end_s >= self.at_s and (
            self.recovered_s is None or request.sent_s <= self.recovered_s
        )


@dataclass(frozen=True)
class Sample:
    """The processes of one role at one time: how many, and their sums.

    Attributes:
        time_s: When the sample was taken.
        role: Name of the processes without what differs between two of them.
        processes: Number of processes.
        rss: Resident memory in bytes.
        files: Open files, sockets included.
        tasks: Threads, as the kernel counts them.
        sockets: Open sockets.
    """

    time_s: float
    role: str
    processes: int
    rss: int
    files: int
    tasks: int
    sockets: int


def unaffected(requests: Iterable[Request], faults: Sequence[Fault]) -> list[Request]:
    """Return the requests that no fault affects."""
    return [r for r in requests if not any(fault.affects(r) for fault in faults)]


def memory_ratios(samples: Sequence[Sample], end_s: float) -> dict[str, float]:
    """Return each role's memory per process in the last eighth over that in the first quarter.

    A role that has no process in one of the two is left out. The start of the first quarter, when
    caches fill, does not count: only its second half does.
    """
    start = _memory(samples, end_s / 8, end_s / 4)
    end = _memory(samples, end_s * 7 / 8, end_s)
    return {role: round(end[role] / start[role], 3) for role in sorted(start.keys() & end.keys())}


def _memory(samples: Sequence[Sample], from_s: float, to_s: float) -> dict[str, float]:
    """Return the mean memory of a process by role."""
    values: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        if from_s <= sample.time_s <= to_s and sample.processes:
            values[sample.role].append(sample.rss / sample.processes)
    return {role: mean(values[role]) for role in values}


def leftovers(before: Sequence[Sample], after: Sequence[Sample], level: str) -> dict[str, int]:
    """Return by how much each role exceeds its initial level, where it does.

    Args:
        before: A sample of each role while nothing is sent, before the load.
        after: The same after the load.
        level: One of LEVELS.
    """
    initial = {sample.role: int(getattr(sample, level)) for sample in before}
    excess = {s.role: int(getattr(s, level)) - initial.get(s.role, 0) for s in after}
    return {role: number for role, number in sorted(excess.items()) if number > 0}


def p99_drift(requests: Sequence[Request], end_s: float) -> float | None:
    """Return the 99th percentile of TTFT in the last quarter over that in the first."""
    first = _ttft_p99(requests, lambda r: r.sent_s <= end_s / 4)
    last = _ttft_p99(requests, lambda r: r.sent_s >= end_s * 3 / 4)
    return round(last / first, 3) if first and last else None


def _ttft_p99(requests: Sequence[Request], included: Callable[[Request], bool]) -> float | None:
    values = sorted(r.first_s - r.sent_s for r in requests if r.ok and r.first_s and included(r))
    return values[int(0.99 * (len(values) - 1))] if len(values) >= MIN_REQUESTS else None


def figures(
    requests: Sequence[Request],
    faults: Sequence[Fault],
    samples: Sequence[Sample],
    idle: tuple[Sequence[Sample], Sequence[Sample]],
    end_s: float,
) -> dict[str, float | int | str | None]:
    """Return the figures by name.

    Args:
        requests: All requests.
        faults: All faults, in their order.
        samples: The samples under load.
        idle: The samples before and after the load.
        end_s: When the load ended.
    """
    clear = unaffected(requests, faults)
    ratios = memory_ratios(samples, end_s)
    worst = max(ratios, key=lambda role: ratios[role], default=None)
    values: dict[str, float | int | str | None] = {
        "duration_s": round(end_s),
        "requests": len(requests),
        "failed": sum(not r.ok for r in requests),
        "failed_outside": sum(not r.ok for r in clear),
        "memory_ratio": ratios[worst] if worst else None,
        "memory_ratio_role": worst,
        "ttft_p99_drift": p99_drift(clear, end_s),
        "faults": len(faults),
        "not_recovered": sum(fault.recovered_s is None for fault in faults),
    }
    for level in LEVELS:
        excess = leftovers(*idle, level)
        values[f"{level}_left"] = sum(excess.values())
        values[f"{level}_left_roles"] = ", ".join(f"{r}: {n}" for r, n in excess.items()) or None
    for name in sorted({fault.name for fault in faults}):
        times = [f.recovered_s - f.at_s for f in faults if f.name == name and f.recovered_s]
        values[f"recovered_s_{name}"] = round(max(times), 1) if times else None
    return values


def reasons(requests: Sequence[Request], faults: Sequence[Fault]) -> list[str]:
    """Return a line for each kind of failure outside the faults, the most frequent first."""
    failed = [request for request in unaffected(requests, faults) if not request.ok]
    kinds = [(r.path, r.kind, re.sub(r"[0-9a-f-]{8,}", "ID", r.error or "")) for r in failed]
    return [
        f"{count} times: {path}, {kind}: {error}"
        for (path, kind, error), count in Counter(kinds).most_common()
    ]


def plot(
    requests: Sequence[Request], faults: Sequence[Fault], samples: Sequence[Sample]
) -> go.Figure:
    """Return a figure: TTFT, failed requests, and memory by role, with a mark for each fault."""
    import plotly.graph_objects as go

    from workbench.figures.style import BLUE, GREEN, ORANGE, TIME_TITLE, VERMILLION, stacked, titled

    figure = stacked([0.4, 0.2, 0.4], 760)
    for path, colour in (("direct", BLUE), ("composed", ORANGE)):
        streams = [r for r in requests if r.ok and r.first_s and r.path == path]
        times = [r.sent_s for r in streams]
        ttfts = [(r.first_s - r.sent_s) * 1e3 for r in streams if r.first_s]
        marker = {"color": colour, "size": 3}
        points = go.Scattergl(x=times, y=ttfts, mode="markers", marker=marker, name=f"TTFT, {path}")
        figure.add_trace(points, row=1, col=1)
    failed = [r.end_s for r in requests if not r.ok]
    bars = go.Histogram(x=failed, xbins={"size": 10}, marker={"color": VERMILLION}, name="Failed")
    figure.add_trace(bars, row=2, col=1)
    for role in largest_roles(samples):
        own = [sample for sample in samples if sample.role == role]
        gib = [sample.rss / 2**30 for sample in own]
        short = role.replace(".handle_request_with_rejection", "")
        line = go.Scatter(x=[s.time_s for s in own], y=gib, mode="lines", name=short)
        figure.add_trace(line, row=3, col=1)
    for fault in faults:
        mark = {"x": fault.at_s, "line": {"color": GREEN, "dash": "dot"}, "col": 1}
        name = fault.name.replace("_", " ")
        figure.add_vline(**mark, annotation_text=name, annotation_textangle=-90, row=1)
        figure.add_vline(**mark, row="all")
    figure.update_yaxes(title_text="TTFT (ms)", type="log", row=1, col=1)
    figure.update_yaxes(title_text="Failed in 10 s", rangemode="nonnegative", row=2, col=1)
    figure.update_yaxes(title_text="Memory (GiB)", row=3, col=1)
    figure.update_xaxes(title_text=TIME_TITLE, row=3, col=1)
    legend = {"orientation": "h", "x": 0, "y": -0.12, "yanchor": "top"}
    return titled(figure, "Soak test").update_layout(
        legend=legend, margin={"b": 150}, paper_bgcolor="white", plot_bgcolor="white"
    )


def largest_roles(samples: Sequence[Sample], number: int = 6) -> list[str]:
    """Return the roles that need most memory."""
    peaks: dict[str, int] = defaultdict(int)
    for sample in samples:
        peaks[sample.role] = max(peaks[sample.role], sample.rss)
    return sorted(peaks, key=lambda role: -peaks[role])[:number]
