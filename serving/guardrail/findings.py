"""What a guardrail found in a text, and the text without it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from serving.spec.guardrail import SEVERITY, Action


class Finding(NamedTuple):
    """Characters ``start`` to ``end`` (without it) are an ``entity``, and what to do about it."""

    start: int
    end: int
    entity: str
    score: float
    action: Action


def resolve(findings: Iterable[Finding]) -> list[Finding]:
    """Findings in order, without overlaps: those that share characters become one.

    It covers them all, so that nothing found stays behind, and bears the type of the one with the
    severest action, then the highest score, then the most characters.
    """
    merged: list[Finding] = []
    for found in sorted(findings):
        if merged and found.start < merged[-1].end:
            last = merged.pop()
            first = max(last, found, key=_weight)
            merged.append(first._replace(start=last.start, end=max(last.end, found.end)))
        else:
            merged.append(found)
    return merged


def _weight(found: Finding) -> tuple[int, float, int]:
    return SEVERITY.index(found.action), found.score, found.end - found.start


def redacted(text: str, findings: Sequence[Finding]) -> str:
    """``text`` with ``<ENTITY>`` in place of what is to be redacted, as Presidio replaces it."""
    parts, at = [], 0
    for found in findings:
        if found.action == "redact":
            parts += [text[at : max(at, found.start)], f"<{found.entity}>"]
            at = max(at, found.end)
    return "".join(parts) + text[at:]


def blocked(findings: Iterable[Finding]) -> list[str]:
    """The types of entity that block, in alphabetical order."""
    return sorted({found.entity for found in findings if found.action == "block"})


class FindingCounts(Counter[tuple[str, str]]):
    """How often a guardrail did what about which type of entity."""

    def note(self, findings: Iterable[Finding]) -> None:
        """Count ``findings``."""
        self.update((found.entity, found.action) for found in findings)

    def __str__(self) -> str:
        """As a header's value: ``EMAIL_ADDRESS;action=redact;count=2, ...``."""
        return ", ".join(
            f"{entity};action={action};count={count}"
            for (entity, action), count in sorted(self.items())
        )
