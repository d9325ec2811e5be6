"""Text as a reader understands it: without the characters and escapes that disguise an entity.

``ｊａｎｅ＠example．com``, ``jane&#64;example.com``, ``jane%40example.com`` and an address with
zero-width characters in it all become ``jane@example.com``. Each normalized character knows its
place in the original text, so that a finding can be redacted there.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from urllib.parse import unquote_to_bytes

MAX_ROUNDS = 6
"""Escapes inside of escapes that are undone."""

_ESCAPE = re.compile(
    r"(?:%[0-9A-Fa-f]{2})+"
    r"|&(?:\#\d{1,32}|\#[xX][0-9A-Fa-f]{1,32}|[A-Za-z][A-Za-z0-9]{1,31});?"
    r"|(?:\\u[0-9A-Fa-f]{4})+|\\u\{[0-9A-Fa-f]{1,32}\}|\\U[0-9A-Fa-f]{8}|\\x[0-9A-Fa-f]{2}"
    r"|\\[nrtbf\"'/\\]",
    re.ASCII,
)
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_BETWEEN_DIGITS = re.compile(r"(?<=[\d)])(?:\s*[\n\r\t\v\f]\s*|\s{2,})(?=[\d+(])", re.ASCII)
_DASH_BETWEEN_DIGITS = re.compile(r"(?<=[\d)])(\s*)[‒–—―−](\s*)(?=[\d(])")
_DOT_BETWEEN_LETTERS = re.compile(r"(?<=[A-Za-z0-9)])[。｡·•・‧∙⋅](?=[A-Za-z0-9(])")
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "b": " ", "f": "\f"}
_UNSEEN = ("Cf", "Cc", "Mn", "Me")
"""Categories of characters without an own appearance, and of marks on another character."""
_HYPHENS = frozenset("‐‑⁃﹣－")
_KEPT = frozenset("。｡·•・‧∙⋅‒–—―−…¨´¸˜")
"""Characters whose compatibility form would join or split words."""


class Normalized:
    """A normalized text and where its characters come from.

    Args:
        text: The normalized text.
        starts: Original position of each character's start, or None if nothing moved.
        ends: Original position of each character's end, or None if nothing moved.
    """

    __slots__ = ("_ends", "_length", "_starts", "text")

    def __init__(
        self,
        text: str,
        length: int,
        starts: Sequence[int] | None = None,
        ends: Sequence[int] | None = None,
    ) -> None:
        self.text = text
        self._length = length
        self._starts, self._ends = starts, ends

    def start(self, position: int) -> int:
        """Return where the character at ``position`` starts in the original text."""
        if self._starts is None:
            return position
        return self._starts[position] if position < len(self._starts) else self._length

    def end(self, position: int) -> int:
        """Return where the text up to ``position`` ends in the original text."""
        if self._ends is None or not position:
            return position
        return self._ends[position - 1]

    def replace(self, pieces: Iterator[tuple[int, int, str]]) -> Normalized:
        """Return this text with pieces of it replaced.

        Args:
            pieces: Start, end and replacement of each, in order.
        """
        text: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        position = 0

        def keep(until: int) -> None:
            text.append(self.text[position:until])
            starts.extend(self.start(i) for i in range(position, until))
            ends.extend(self.end(i + 1) for i in range(position, until))

        for start, end, replacement in pieces:
            keep(start)
            text.append(replacement)
            starts.extend([self.start(start)] * len(replacement))
            ends.extend([self.end(end)] * len(replacement))
            position = end
        if not position:
            return self
        keep(len(self.text))
        return Normalized("".join(text), self._length, starts, ends)


def normalize(text: str) -> Normalized:
    """Return ``text`` without disguises, and where its characters come from."""
    normalized = Normalized(text, len(text))
    for _ in range(MAX_ROUNDS):
        before = normalized.text
        normalized = _visible(normalized)
        if "%" in normalized.text or "&" in normalized.text or "\\" in normalized.text:
            normalized = normalized.replace(_unescaped(normalized.text))
        if normalized.text == before:
            break
    return _between(normalized)


def _visible(normalized: Normalized) -> Normalized:
    """Remove invisible characters, and write letters, digits and signs in their plain form."""
    text = normalized.text
    if text.isascii():
        if not _INVISIBLE.search(text):
            return normalized
    elif text.translate(_PLAIN) == text:
        return normalized
    return normalized.replace(
        (index, index + 1, plain)
        for index, char in enumerate(text)
        if (plain := _PLAIN[ord(char)]) != char
    )


class _PlainForms(dict[int, str]):
    """The plain form of each character, computed at its first use."""

    def __missing__(self, code: int) -> str:
        plain = self[code] = _plain(chr(code))
        return plain


def _plain(char: str) -> str:
    if char in "\t\n\r\v\f" or " " <= char <= "~" or char in _KEPT:
        return char
    if char in _HYPHENS:
        return "-"
    category = unicodedata.category(char)
    if category in ("Zs", "Zl", "Zp"):
        return " " if category == "Zs" else "\n"
    if category in _UNSEEN or _is_filler(char):
        return " " if char == "\x85" else ""
    digit = unicodedata.decimal(char, None)
    if digit is not None:
        return str(digit)
    return unicodedata.normalize("NFKC", char)


def _is_filler(char: str) -> bool:
    """Return whether a character of a visible category has no appearance."""
    return (
        char in "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\u2800"
        or "\ufe00" <= char <= "\ufe0f"
        or "\U000e0100" <= char <= "\U000e01ef"
    )


_PLAIN = _PlainForms()


def _unescaped(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the escapes in a text, and what they stand for."""
    for match in _ESCAPE.finditer(text):
        escape, start = match.group(), match.start()
        if escape[0] == "%":
            yield from _percent_decoded(escape, start)
        elif escape[0] == "&":
            plain = html.unescape(escape)
            if plain != escape:
                yield start, match.end(), plain
        else:
            yield from _backslash_decoded(escape, start)


def _percent_decoded(escape: str, start: int) -> Iterator[tuple[int, int, str]]:
    """Yield each character of a run of percent escapes; bytes that are not UTF-8 stay."""
    raw, position = unquote_to_bytes(escape), 0
    while position < len(raw):
        for size in (1, 2, 3, 4):
            try:
                char = raw[position : position + size].decode()
            except UnicodeDecodeError:
                continue
            yield start + 3 * position, start + 3 * (position + size), char
            break
        else:
            size = 1
        position += size


def _backslash_decoded(escape: str, start: int) -> Iterator[tuple[int, int, str]]:
    if escape[1] == "u" and escape[2] != "{":
        yield from _utf16_decoded(escape, start)
        return
    if escape[1] in "uUx":
        code = int(escape[2:].strip("{}"), 16)
        plain = chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else ""
    else:
        plain = _CONTROLS.get(escape[1], escape[1])
    yield start, start + len(escape), plain


def _utf16_decoded(escape: str, start: int) -> Iterator[tuple[int, int, str]]:
    """Yield each character of a run of UTF-16 escapes, two of which may be one character."""
    codes = [int(code, 16) for code in escape[2:].split("\\u")]
    position = 0
    while position < len(codes):
        size, code = 1, codes[position]
        if 0xD800 <= code < 0xDC00 and position + 1 < len(codes):
            low = codes[position + 1]
            if 0xDC00 <= low < 0xE000:
                size, code = 2, 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
        plain = "" if 0xD800 <= code < 0xE000 else chr(code)
        yield start + 6 * position, start + 6 * (position + size), plain
        position += size


def _between(normalized: Normalized) -> Normalized:
    """Write what separates digits as one space or hyphen, and dots between letters as dots."""
    if not normalized.text.isascii():
        normalized = normalized.replace(
            (match.start(), match.end(), f"{match[1] and ' '}-{match[2] and ' '}")
            for match in _DASH_BETWEEN_DIGITS.finditer(normalized.text)
        )
        normalized = normalized.replace(
            (match.start(), match.end(), ".")
            for match in _DOT_BETWEEN_LETTERS.finditer(normalized.text)
        )
    return normalized.replace(
        (match.start(), match.end(), " ") for match in _BETWEEN_DIGITS.finditer(normalized.text)
    )
