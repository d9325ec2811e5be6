"""The end of a streamed text, held back until what follows it is known."""

from __future__ import annotations

from collections.abc import Sequence

from serving.guardrail.findings import Finding, redacted, redacted_json
from serving.guardrail.normalize import normalize

MAX_WORD_CHARS = 256
"""Longest word that is never cut; an e-mail address has at most 254 characters (RFC 5321)."""

CONTEXT_CHARS = 64
"""Released characters that precede each checked text: the words before a number give its type."""


class HoldbackBuffer:
    """The text of one answer between the model and the client.

    At most ``hold + step`` characters wait for a check, and up to MAX_WORD_CHARS more while a word
    continues. Characters are counted after normalization, and white space in a row once, so that
    an entity in disguise is held back as long as a plain one.

    Args:
        hold: Characters held back until more text follows or the answer ends.
        step: New characters that make a check due.
        is_json: Whether the text is JSON, which must stay valid.
    """

    def __init__(self, hold: int, step: int, *, is_json: bool = False) -> None:
        self._hold, self._step, self._is_json = hold, step, is_json
        self._context = ""  # the end of the released text, before redaction
        self._held = ""
        self._new = 0
        self._in_string = False  # of the released JSON

    @property
    def held(self) -> int:
        """Characters held back."""
        return len(self._held)

    def push(self, text: str) -> None:
        """Append what the model generated next."""
        self._held += text
        self._new += len(text)

    def due(self) -> bool:
        """Whether enough text is new since the last check, and a check could release some."""
        return self._new >= self._step and self.held > self._hold

    def text(self) -> str:
        """Return the text to check."""
        return self._context + self._held

    def release(self, findings: Sequence[Finding], *, last: bool) -> tuple[str, list[Finding]]:
        """Release what is safe.

        Args:
            findings: The findings in ``text()``, in order.
            last: Whether the answer has ended; everything is released then.

        Returns:
            The released text with what is to be redacted replaced, and the findings in it.
        """
        offset = len(self._context)
        held_findings = [
            finding._replace(start=max(0, finding.start - offset), end=finding.end - offset)
            for finding in findings
            if finding.end > offset
        ]
        cut = self.held if last else self._safe_length(held_findings)
        released = [finding for finding in held_findings if finding.end <= cut]
        if self._is_json:
            out, self._in_string = redacted_json(
                self._held[:cut], released, in_string=self._in_string
            )
        else:
            out = redacted(self._held[:cut], released)
        self._context = (self._context + self._held[:cut])[-CONTEXT_CHARS:]
        self._held, self._new = self._held[cut:], 0
        return out, released

    def _safe_length(self, findings: Sequence[Finding]) -> int:
        """Return how many characters can be released without cutting a word or a finding."""
        normalized = normalize(self._held)
        last = _hold_start(normalized.text, self._hold)
        word_start = _word_start(normalized.text, last)
        cut = normalized.start(word_start if last - word_start <= MAX_WORD_CHARS else last)
        for finding in reversed(findings):
            if finding.start < cut < finding.end:
                cut = finding.start
        return cut


def _hold_start(text: str, hold: int) -> int:
    """Return where the last ``hold`` characters begin, if white space in a row counts once."""
    position = len(text)
    while position and hold:
        position -= 1
        if not text[position : position + 2].isspace() or position + 1 == len(text):
            hold -= 1
    return position


def _word_start(text: str, position: int) -> int:
    """Return the start of the word around ``position``; ``position`` itself between words."""
    while 0 < position < len(text) and not (
        text[position - 1].isspace() or text[position].isspace()
    ):
        position -= 1
    return position
