"""The findings of a guardrail in a text, and the redacted text."""

from __future__ import annotations

import re
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


def redacted_json(
    text: str, findings: Sequence[Finding], *, in_string: bool = False
) -> tuple[str, bool]:
    """Return JSON ``text`` redacted like :func:`redacted`; it is valid if it was before.

    A number is redacted as a whole and becomes a string.

    Args:
        text: JSON, or the next part of it.
        findings: The findings in it, in order.
        in_string: Whether the text begins inside of a string.

    Returns:
        The redacted text, and whether it ends inside of a string.
    """
    parts, position = [], 0
    for finding in findings:
        if finding.action != "redact" or finding.start < position:
            continue
        in_string = _ends_in_string(text[position : finding.start], in_string)
        label, start, end = f"<{finding.entity}>", finding.start, finding.end
        if not in_string and not _ends_in_string(text[start:end], False):
            start, end = _number_bounds(text, start, end, position)
            label = f'"{label}"'
        else:
            in_string = _ends_in_string(text[start:end], in_string)
        parts += [text[position:start], label]
        position = end
    return "".join(parts) + text[position:], _ends_in_string(text[position:], in_string)


def _ends_in_string(text: str, in_string: bool) -> bool:
    """Return whether JSON ends inside of a string; an escaped quote is part of the string."""
    quotes = sum(1 for match in re.finditer(r'\\.|"', text, re.DOTALL) if match.group() == '"')
    return in_string != bool(quotes % 2)


def _number_bounds(text: str, start: int, end: int, floor: int) -> tuple[int, int]:
    """Return the bounds of the whole JSON number around ``start`` to ``end``."""
    while start > floor and text[start - 1] in "+-.0123456789eE":
        start -= 1
    while end < len(text) and text[end] in "+-.0123456789eE":
        end += 1
    return start, end


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
