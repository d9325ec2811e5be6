"""What a streamed text releases, and when. Ground truth: the text itself."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from support.email_guard import EMAIL, find_email

from serving.guardrail.findings import Finding
from serving.guardrail.holdback import MAX_WORD_CHARS, HoldbackBuffer
from serving.guardrail.normalize import normalize


def streamed(pieces: Sequence[str], hold: int, step: int) -> tuple[str, int]:
    """Return what a buffer releases if checked whenever a check is due, and the most it held."""
    buffer, out, peak = HoldbackBuffer(hold, step), "", 0
    for piece in pieces:
        buffer.push(piece)
        if buffer.due():
            out += buffer.release(find_email(buffer.text()), last=False)[0]
        peak = max(peak, buffer.held)
    return out + buffer.release(find_email(buffer.text()), last=True)[0], peak


CARD = "4111 1111 1111 1111"
HIDDEN = {
    "entities": "".join(char if char == " " else f"&#{ord(char)};" for char in CARD),
    "zero width": "\u200b\u200d\u2060".join(CARD),
    "newlines": CARD.replace(" ", "\n" * 40),
    "full width": CARD.translate({ord(digit): ord(digit) + 0xFEE0 for digit in "0123456789"}),
}


def find_card(text: str) -> list[Finding]:
    """Find the one card number, also in disguise."""
    plain = normalize(text)
    start = plain.text.find(CARD)
    if start < 0:
        return []
    end = plain.end(start + len(CARD))
    return [Finding(plain.start(start), end, "CREDIT_CARD", 1.0, "redact")]


class TestHoldbackBuffer:
    @settings(max_examples=200)
    @given(
        hidden=st.sampled_from(sorted(HIDDEN.values())),
        before=st.text("ab .", max_size=200),
        after=st.text("cd .", max_size=200),
        cuts=st.lists(st.integers(0, 700), max_size=60),
        step=st.integers(1, 100),
    )
    def test_an_entity_in_disguise_does_not_leave_in_parts(
        self, hidden: str, before: str, after: str, cuts: list[int], step: int
    ) -> None:
        text = f"{before}x {hidden} x{after}"
        bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
        buffer, out = HoldbackBuffer(24, step), ""
        for start, end in pairwise(bounds):
            buffer.push(text[start:end])
            if buffer.due():
                out += buffer.release(find_card(buffer.text()), last=False)[0]
        out += buffer.release(find_card(buffer.text()), last=True)[0]
        assert out == f"{before}x <CREDIT_CARD> x{after}"

    def test_json_stays_valid_wherever_it_is_split(self) -> None:
        text = json.dumps({"a": [EMAIL, 'say "hi"'], "n": 1, EMAIL: {}})
        for size in range(1, len(text)):
            pieces = [text[at : at + size] for at in range(0, len(text), size)]
            buffer, out = HoldbackBuffer(24, 1, is_json=True), ""
            for piece in pieces:
                buffer.push(piece)
                if buffer.due():
                    out += buffer.release(find_email(buffer.text()), last=False)[0]
            out += buffer.release(find_email(buffer.text()), last=True)[0]
            label = "<EMAIL_ADDRESS>"
            assert json.loads(out) == {"a": [label, 'say "hi"'], "n": 1, label: {}}

    def test_a_number_in_json_becomes_a_string(self) -> None:
        text = '{"card": -4111111111111111.0, "text": "4111111111111111"}'
        starts = [match.start() for match in re.finditer("4111111111111111", text)]
        found = [Finding(at, at + 16, "CREDIT_CARD", 1.0, "redact") for at in starts]
        buffer = HoldbackBuffer(24, 1, is_json=True)
        buffer.push(text)
        out, _ = buffer.release(found, last=True)
        assert json.loads(out) == {"card": "<CREDIT_CARD>", "text": "<CREDIT_CARD>"}

    @settings(max_examples=150)
    @given(
        before=st.text("ab \n.", max_size=300),
        after=st.text("cd \n.", max_size=300),
        cuts=st.lists(st.integers(0, 620), max_size=40),
        hold=st.integers(16, 64),
        step=st.integers(1, 100),
    )
    def test_an_address_is_found_wherever_it_is_split(
        self, before: str, after: str, cuts: list[int], hold: int, step: int
    ) -> None:
        text = f"{before} {EMAIL} {after}"
        bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
        pieces = [text[a:b] for a, b in pairwise(bounds)]
        out, _ = streamed(pieces, hold, step)
        assert out == f"{before} <EMAIL_ADDRESS> {after}"

    def test_the_buffer_does_not_wait_for_the_whole_answer(self) -> None:
        words = "one two three four five six seven eight nine ten " * 20
        buffer, out = HoldbackBuffer(48, 96), ""
        for letter in words:
            buffer.push(letter)
            if buffer.due():
                out += buffer.release([], last=False)[0]
            assert buffer.held <= 48 + 96 + len("seven")
        assert len(out) > len(words) - 48 - 96 - len("seven")
        assert words.startswith(out)

    def test_an_endless_word_is_held_up_to_the_longest_word(self) -> None:
        out, peak = streamed(["x"] * 5000, 48, 96)
        assert out == "x" * 5000
        assert peak <= 48 + 96 + MAX_WORD_CHARS

    def test_released_text_precedes_the_next_checked_text(self) -> None:
        buffer = HoldbackBuffer(16, 1)
        buffer.push("my badge number is B-12345 and so on and on")
        buffer.release([], last=False)
        assert buffer.text().startswith("my badge number is")

    def test_a_finding_is_returned_once(self) -> None:
        buffer, findings = HoldbackBuffer(16, 1), []
        for piece in [f"a {EMAIL}", " and more", " and more", " and more of it"]:
            buffer.push(piece)
            findings += buffer.release(find_email(buffer.text()), last=False)[1]
        assert [finding.entity for finding in findings] == ["EMAIL_ADDRESS"]
