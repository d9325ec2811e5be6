"""What makes two sets of runs hard to compare, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.runs.run import Run


def comparison_notes(baseline: Sequence[Run], candidate: Sequence[Run]) -> list[str]:
    """Return a sentence for each reason why a difference may have another cause; else none."""
    sides = {"baseline": baseline, "candidate": candidate}
    return [*_notebooks(sides), *_without_results(sides), *_limited(sides)]


def _notebooks(sides: dict[str, Sequence[Run]]) -> Iterator[str]:
    names = {
        side: sorted({str(run.experiment.get("notebook") or "no notebook") for run in runs})
        for side, runs in sides.items()
    }
    if names["baseline"] != names["candidate"] or len(names["baseline"]) > 1:
        listed = "; ".join(f"{side}: {', '.join(found)}" for side, found in names.items())
        yield (
            f"The runs are of different notebooks ({listed}), which send different loads. Name "
            "runs of one notebook in `baseline` and `candidate`."
        )


def _without_results(sides: dict[str, Sequence[Run]]) -> Iterator[str]:
    for side, runs in sides.items():
        for run in runs:
            summary = run.summary()
            if summary is not None and not summary.completed:
                yield (
                    f"{run.run_id} ({side}) completed no request: {summary.failed} failed and "
                    f"{summary.shed} shed. It has no latency, so its pair has no ratio."
                )


def _limited(sides: dict[str, Sequence[Run]]) -> Iterator[str]:
    for side, runs in sides.items():
        for run in runs:
            summary = run.summary()
            if summary is not None and summary.client_health.client_limited:
                reasons = "; ".join(summary.client_health.reasons)
                yield f"{run.run_id} ({side}) was limited by the client ({reasons})."
