"""What a streamed text releases, and when. Ground truth: the text itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from support.email_guard import EMAIL, find_email

from serving.guardrail.holdback import MAX_WORD_CHARS, HoldbackBuffer


def streamed(pieces: Sequence[str], hold: int, step: int) -> tuple[str, int]:
    """Return what a buffer releases if checked whenever a check is due, and the most it held."""
    buffer, out, peak = HoldbackBuffer(hold, step), "", 0
    for piece in pieces:
        buffer.push(piece)
        if buffer.due():
            out += buffer.release(find_email(buffer.text()), last=False)[0]
        peak = max(peak, buffer.held)
    return out + buffer.release(find_email(buffer.text()), last=True)[0], peak


class TestHoldbackBuffer:
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
