"""The parameters and the metrics of a run as flat names and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from workbench.metrics.registry import all_figures

if TYPE_CHECKING:
    from workbench.metrics.summary import Summary
    from workbench.runs.run import Run


def parameters_of(run: Run) -> dict[str, Any]:
    """Return what determined a run, by dotted name: parameters, versions and hardware.

    Lists are texts. Secrets were removed when the run was created.
    """
    return {
        **dict(_flat("", run.experiment)),
        **dict(_flat("versions.", run.document.get("versions") or {})),
        **dict(_flat("hardware.", run.document.get("hardware") or {})),
    }


def metrics_of(summary: Summary) -> dict[str, float]:
    """Return the figures of a summary that are known, and its SLO's bounds."""
    known = {name: summary.figure(name) for name in all_figures()}
    if summary.slo is not None:
        known |= {f"slo_{name}": bound for name, bound in summary.slo.bounds().items()}
        known["slo_target"] = summary.slo.target
    if summary.slo_met is not None:
        known["slo_met"] = float(summary.slo_met)
    return {name: value for name, value in known.items() if value is not None}


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        elif isinstance(value, list):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        elif value is not None:
            yield f"{prefix}{name}", value
