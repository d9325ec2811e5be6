"""A streamed answer's text, held back until what stands in it can be known.

Text comes in pieces of any size, and what a guardrail looks for may be cut anywhere. So the last
``hold`` characters are kept until more has come or the answer ends, and so is a word that is not
over, as far as MAX_WORD characters: nothing of ``hold`` characters or fewer, and no word of
MAX_WORD or fewer, is ever let out in part. What is let out was looked at with the CONTEXT before
it.
"""

from __future__ import annotations

from collections.abc import Sequence

from serving.guardrail.findings import Finding, redacted

MAX_WORD = 256
"""Characters of a longest word: an e-mail address has 254 at most (RFC 5321)."""
CONTEXT = 64
"""Characters already let out that a look begins with: words before a number say what it is."""


class Window:
    """The text of one answer between the model and the client.

    At most ``hold + step`` characters wait for a look, and MAX_WORD more where a word is not over.
    """

    def __init__(self, hold: int, step: int) -> None:
        self._hold, self._step = hold, step
        self._out = ""  # the end of what was let out, as it was before any redaction
        self._held = ""
        self._new = 0

    @property
    def held(self) -> int:
        """Characters that wait."""
        return len(self._held)

    def push(self, text: str) -> None:
        """Take what the model said next."""
        self._held += text
        self._new += len(text)

    def due(self) -> bool:
        """Whether a look could let something out and enough has come since the last one."""
        return self._new >= self._step and self.held > self._hold

    def text(self) -> str:
        """What is to be looked at."""
        return self._out + self._held

    def release(self, findings: Sequence[Finding], *, last: bool) -> tuple[str, list[Finding]]:
        """What is safe to let out, with what is to be redacted replaced, and the findings in it.

        ``findings`` are those of ``text()``; ``last`` lets out all of it.
        """
        before = len(self._out)
        own = [
            found._replace(start=max(0, found.start - before), end=found.end - before)
            for found in findings
            if found.end > before
        ]
        cut = self.held if last else self._safe(own)
        over = [found for found in own if found.end <= cut]
        out = redacted(self._held[:cut], over)
        self._out = (self._out + self._held[:cut])[-CONTEXT:]
        self._held, self._new = self._held[cut:], 0
        return out, over

    def _safe(self, findings: Sequence[Finding]) -> int:
        """How much of what was looked at can go: no word and no finding is cut."""
        cut = max(0, self.held - self._hold)
        word = _word_start(self._held, cut)
        cut = word if self.held - word <= self._hold + MAX_WORD else cut
        for found in reversed(findings):
            if found.start < cut < found.end:
                cut = found.start
        return cut


def _word_start(text: str, at: int) -> int:
    """Where the word begins that position ``at`` lies in; ``at`` itself between words."""
    while at > 0 and at < len(text) and not text[at - 1].isspace() and not text[at].isspace():
        at -= 1
    return at
