"""Findings: merged, redacted, and counted."""

from __future__ import annotations

from typing import Any

from serving.guardrail.findings import (
    Finding,
    FindingCounts,
    blocked_entities,
    merge_overlaps,
    redacted,
)


def finding(start: int, end: int, entity: str = "A", score: float = 0.5, action: Any = "redact"):  # type: ignore[no-untyped-def]
    return Finding(start, end, entity, score, action)


class TestFindings:
    def test_overlapping_findings_are_merged(self) -> None:
        merged = merge_overlaps(
            [finding(5, 9, "B", 0.9), finding(0, 6, "A", 0.4), finding(9, 10, "C")]
        )
        assert merged == [finding(0, 9, "B", 0.9), finding(9, 10, "C")]
        assert redacted("0123456789x", merged) == "<B><C>x"

    def test_a_merged_finding_has_the_type_of_the_severest_action(self) -> None:
        merged = merge_overlaps([finding(0, 9, "A", 1.0), finding(2, 3, "B", 0.1, "block")])
        assert merged == [finding(0, 9, "B", 0.1, "block")]
        assert blocked_entities(merged) == ["B"]

    def test_only_findings_to_redact_are_redacted(self) -> None:
        text = "ab cd ef"
        assert redacted(text, [finding(0, 2, action="annotate"), finding(3, 5)]) == "ab <A> ef"

    def test_counts_name_types_and_never_texts(self) -> None:
        counts = FindingCounts()
        counts.record([finding(0, 1, "B"), finding(0, 1, "B"), finding(0, 1, "A", 1, "annotate")])
        assert str(counts) == "A;action=annotate;count=1, B;action=redact;count=2"
