"""Disguises and what they hide. Ground truth: the plain text each disguise was made from."""

from __future__ import annotations

import html
import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.guardrail.normalize import normalize

PLAIN = "jane.roe@example.com"


def original(text: str, start: int, end: int) -> str:
    """Return the original text of some normalized characters."""
    normalized = normalize(text)
    return text[normalized.start(start) : normalized.end(end)]


def full_width(text: str) -> str:
    return "".join(chr(ord(char) + 0xFEE0) for char in text)


DISGUISED = {
    "full width": full_width(PLAIN),
    "zero-width space": "\u200b".join(PLAIN),
    "zero-width joiner": "\u200d".join(PLAIN),
    "word joiner": "\u2060".join(PLAIN),
    "byte order mark": "\ufeff".join(PLAIN),
    "soft hyphen": "\u00ad".join(PLAIN),
    "variation selector": "\ufe0f".join(PLAIN),
    "direction marks": f"\u202e{PLAIN}\u202c",
    "control character": "\x00".join(PLAIN),
    "percent": "".join(f"%{byte:02x}" for byte in PLAIN.encode()),
    "percent twice": urllib.parse.quote(urllib.parse.quote(PLAIN, safe=""), safe=""),
    "decimal entities": "".join(f"&#{ord(char)};" for char in PLAIN),
    "hexadecimal entities": "".join(f"&#x{ord(char):X};" for char in PLAIN),
    "named entities": PLAIN.replace("@", "&commat;").replace(".", "&period;"),
    "entity twice": PLAIN.replace("@", html.escape("&#64;")),
    "JSON escapes": "".join(f"\\u{ord(char):04x}" for char in PLAIN),
    "hexadecimal escapes": PLAIN.replace("@", "\\x40"),
    "full width in percent": urllib.parse.quote(full_width(PLAIN)),
    "zero width in an entity": PLAIN.replace("@", "&#\u200b64;"),
    "entity of a percent sign": PLAIN.replace("@", "&#37;40"),
    "long entities": PLAIN.replace("@", f"&#{64:030d};"),
    "combining marks": "\u0336".join(PLAIN),
    "escapes in escapes": PLAIN.replace("@", r"\\u0040"),
    "ideographic dot": PLAIN.replace(".", "。"),
    "middle dot": PLAIN.replace(".", "·"),
}


class TestDisguises:
    @pytest.mark.parametrize("text", DISGUISED.values(), ids=DISGUISED)
    def test_the_plain_text_is_found_and_its_whole_disguise_with_it(self, text: str) -> None:
        around = f"Write to {text} today"
        start = normalize(around).text.index(PLAIN)
        assert original(around, start, start + len(PLAIN)).strip("\u202e\u202c") == text.strip(
            "\u202e\u202c"
        )

    @pytest.mark.parametrize(
        ("text", "plain"),
        [
            ("4111\u20111111\u20111111\u20111111", "4111-1111-1111-1111"),
            ("4111\u00a01111\u202f1111\u20091111", "4111 1111 1111 1111"),
            ("4111\n1111\r\n1111 \n 1111", "4111 1111 1111 1111"),
            ("212\u2013555\u20140199", "212-555-0199"),
            ("212 \u2013 555", "212 - 555"),
            ("(212)\n555\n0199", "(212) 555 0199"),
            ("٤١١١", "4111"),
            ("\U0001d7d2\U0001d7cf", "41"),
            ("4\u24ea", "40"),
        ],
    )
    def test_numbers(self, text: str, plain: str) -> None:
        assert normalize(text).text == plain

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "plain text, with 100% of its signs & more",
            "a — b – c… “quoted”",
            "请联系我们。谢谢",
            "é ü ß ñ",
            "a\n\nb\n- c",
            "R&D at 5%20 is not é%",
        ],
    )
    def test_ordinary_text_keeps_its_positions(self, text: str) -> None:
        normalized = normalize(text)
        for position, char in enumerate(normalized.text):
            if char not in text:
                continue
            source = text[normalized.start(position) : normalized.end(position + 1)]
            assert source == char or len(source) > 1

    @settings(max_examples=300)
    @given(st.text(st.characters() | st.sampled_from("%&#;\\u0123456789abcx\u200b＠"), max_size=60))
    def test_positions_are_in_order_and_cover_the_text(self, text: str) -> None:
        normalized = normalize(text)
        length = len(normalized.text)
        starts = [normalized.start(i) for i in range(length + 1)]
        ends = [normalized.end(i) for i in range(1, length + 1)]
        assert starts == sorted(starts)
        assert ends == sorted(ends)
        assert all(0 <= a < b <= len(text) for a, b in zip(starts, ends, strict=False))
        assert starts[-1] == len(text)

    @settings(max_examples=200)
    @given(st.text("abc 12.,\n", max_size=60))
    def test_plain_letters_are_unchanged(self, text: str) -> None:
        assert "".join(normalize(text).text.split()) == "".join(text.split())
