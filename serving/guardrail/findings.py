"""The findings of a guardrail in a text, and the redacted text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from serving.spec.guardrail import SEVERITY, Action


class Finding(NamedTuple):
    """An entity at the characters from ``start`` up to ``end``, and what to do about it."""

    start: int
    end: int
    entity: str
    score: float
    action: Action


def merge_overlaps(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings in order, with those that share characters merged into one.

    A merged finding covers them all, so that nothing found remains. It has the type of the one with
    the severest action, then the highest score, then the most characters.
    """
    merged: list[Finding] = []
    for finding in sorted(findings):
        if merged and finding.start < merged[-1].end:
            last = merged.pop()
            winner = max(last, finding, key=_weight)
            merged.append(winner._replace(start=last.start, end=max(last.end, finding.end)))
        else:
            merged.append(finding)
    return merged


def _weight(finding: Finding) -> tuple[int, float, int]:
    return SEVERITY.index(finding.action), finding.score, finding.end - finding.start


def redacted(text: str, findings: Sequence[Finding]) -> str:
    """Return ``text`` with ``<ENTITY>`` in place of what is to be redacted, as Presidio does."""
    parts, position = [], 0
    for finding in findings:
        if finding.action == "redact":
            parts += [text[position : max(position, finding.start)], f"<{finding.entity}>"]
            position = max(position, finding.end)
    return "".join(parts) + text[position:]


def blocked_entities(findings: Iterable[Finding]) -> list[str]:
    """Return the entity types that block, in alphabetical order."""
    return sorted({finding.entity for finding in findings if finding.action == "block"})


class FindingCounts(Counter[tuple[str, str]]):
    """The number of findings by entity type and action."""

    def record(self, findings: Iterable[Finding]) -> None:
        """Count ``findings``."""
        self.update((finding.entity, finding.action) for finding in findings)

    def __str__(self) -> str:
        """Format as a header's value: ``EMAIL_ADDRESS;action=redact;count=2, ...``."""
        return ", ".join(
            f"{entity};action={action};count={count}"
            for (entity, action), count in sorted(self.items())
        )
