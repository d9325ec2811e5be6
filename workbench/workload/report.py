"""What is notable about the trace or the prompt file of a load, for its summary and report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.workload.trace_fit import TraceFit
    from workbench.workload.trace_request import Trace


@dataclass(frozen=True)
class WorkloadReport:
    """What was read, left out and changed.

    Attributes:
        trace: The format of the trace and the unit of its times, by name.
        skipped: Requests of the trace that were left out, by reason.
        clipped: Requests of the trace whose lengths were changed, by reason.
        left_out: What was left out of a prompt file, by reason.
        notes: Sentences for a person.
    """

    trace: Mapping[str, Any] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    clipped: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def merged(
        cls, report: WorkloadReport | None, left_out: Mapping[str, int]
    ) -> WorkloadReport | None:
        """Return a report with what was left out of a prompt file; None if there is nothing."""
        if not left_out:
            return report
        report = report or cls()
        note = f"left out of the prompt file: {_counts(left_out)}"
        return replace(report, left_out=dict(left_out), notes=(*report.notes, note))

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data, without empty parts."""
        parts = ("trace", "skipped", "clipped", "left_out", "notes")
        values = {name: getattr(self, name) for name in parts}
        return {
            name: list(value) if isinstance(value, tuple) else dict(value)
            for name, value in values.items()
            if value
        }


def report_trace(trace: Trace, fit: TraceFit, *, recorded: bool) -> WorkloadReport:
    """Return what is notable about a trace.

    Args:
        trace: The trace.
        fit: The requests of it that fit the load.
        recorded: Whether the prompts are those of the trace.
    """
    facts = {
        "format": trace.format,
        "unit": trace.unit,
        "requests": len(fit.requests),
        "out_of_order": trace.out_of_order or None,
        "images": trace.images or None,
        "batch_s": trace.batch_s,
        "block_size": trace.block_size,
    }
    return WorkloadReport(
        trace={name: value for name, value in facts.items() if value is not None},
        skipped=dict(fit.skipped),
        clipped=dict(fit.clipped),
        notes=tuple(_notes(trace, fit, recorded=recorded)),
    )


def _notes(trace: Trace, fit: TraceFit, *, recorded: bool) -> list[str]:
    notes = []
    if fit.skipped:
        notes.append(f"requests of the trace left out: {_counts(fit.skipped)}")
    if fit.clipped:
        notes.append(f"requests of the trace with changed lengths: {_counts(fit.clipped)}")
    if trace.out_of_order:
        notes.append(f"{trace.out_of_order} rows of the trace were out of order and are sorted")
    if trace.images:
        notes.append(
            f"{trace.images} requests of the trace had images: none is sent, and their tokens are "
            "sent as text"
        )
    if trace.batch_s is not None:
        notes.append(
            f"arrivals of the trace come in batches: its times are so coarse that requests share "
            f"them (median {trace.batch_s:g} s apart)"
        )
    if not recorded and trace.prefixes:
        notes.append("the hash_ids of the trace are not used: TracePrompts shares prefixes by them")
    return notes


def _counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in reasons.items())
