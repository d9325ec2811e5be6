"""Presidio recognizers that tell personal data from ordinary numbers.

A number counts by its form (an international prefix, a usual grouping, a check digit) or by the
words around it. A form that many other numbers have gets a low score, and Presidio's context
enhancement raises it next to a word such as "phone". A number that is labelled as something else
("ticket 415-555-0101", "version 10.4.2.118") is none.

Import this only where it runs: Presidio takes seconds to import.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import phonenumbers
import tldextract
from presidio_analyzer import (
    AnalysisExplanation,
    EntityRecognizer,
    LocalRecognizer,
    Pattern,
    PatternRecognizer,
    RecognizerResult,
)
from presidio_analyzer.predefined_recognizers import (
    CreditCardRecognizer,
    EmailRecognizer,
    IpRecognizer,
    PhoneRecognizer,
    SpacyRecognizer,
    UsSsnRecognizer,
)

from serving.guardrail.vocabulary import names
from serving.spec.guardrail import PresidioGuardrail

STRONG = 0.6
"""Score of a form that hardly any other number has."""
USUAL = 0.45
"""Score of a form that counts unless a label says otherwise."""
WEAK = 0.2
"""Score of a form that counts next to a context word only."""

LABELS = names(
    """
    account aisle article asin barcode batch bin bug build byte case catalog catalogue chapter claim
    clause code commit count counter customer docket document driver ean edition epoch equation
    error figure file firmware gtin hash id index invoice isbn issn issue item job kernel key line
    lot manual model module offset order package page paragraph parcel part patch pid po port
    position product protocol pull purchase qty quantity record ref reference release request
    requirement rev revision row rule run score section seed serial shipment size sku standard step
    stock table tag task ticket timestamp token total track tracking transaction upc upgrade
    upgraded upgrading user uuid v ver version volume
    """
)
"""Words that say that the number after them is not personal data."""
_FILLERS = names("number numbers no nr num the a an is was are were and or to than of")
_LABEL_CHARS = 48

PHONE_CONTEXT = names(
    """
    phone phones telephone tel mobile cell cellphone number numbers call calls called dial ring text
    sms whatsapp fax hotline reach callback contact telefon handy mobil rufnummer anrufen téléphone
    portable appeler teléfono móvil llamar telefono
    """
)
CARD_CONTEXT = names(
    """
    credit debit card cards cc visa mastercard amex discover jcb diners maestro pan kreditkarte
    karte carte tarjeta
    """
)
IP_CONTEXT = names("ip ipv4 ipv6 address addresses host hosts server client gateway ping subnet")
SSN_CONTEXT = names("social security ssn ssns")


def is_labelled(text: str, start: int) -> bool:
    """Return whether the words before ``start`` say that what follows is another kind of number."""
    before = text[max(0, start - _LABEL_CHARS) : start]
    if before.endswith("#"):
        return True
    for word in reversed(re.findall(r"[^\W\d_]+", before.rpartition("\n\n")[2].lower())):
        if word not in _FILLERS:
            return word in LABELS or word.removesuffix("s") in LABELS
    return False


def is_embedded(text: str, start: int, end: int) -> bool:
    """Return whether something continues a longer number, name or expression."""
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    return bool(
        re.search(r"[\w$€£¥\[]\Z|\w[-_/]\Z|\d[.,]\Z|[=<>~!]=\Z", before)
        or re.match(r"[\w%\]]|[-_/]\w|[.,]\d", after)
    )


class _NumberRecognizer(LocalRecognizer):
    """A recognizer whose subclasses yield what they find."""

    entity: str

    def __init__(self, supported_language: str, context: Iterable[str]) -> None:
        super().__init__(
            supported_entities=[self.entity],
            supported_language=supported_language,
            context=sorted(context),
        )

    def load(self) -> None:
        """Load nothing."""

    def analyze(
        self, text: str, entities: list[str], nlp_artifacts: Any = None
    ) -> list[RecognizerResult]:
        """Return the findings in a text."""
        return [
            RecognizerResult(
                self.entity,
                start,
                end,
                score,
                AnalysisExplanation(recognizer=type(self).__name__, original_score=score),
                {
                    RecognizerResult.RECOGNIZER_NAME_KEY: type(self).__name__,
                    RecognizerResult.RECOGNIZER_IDENTIFIER_KEY: self.id,
                },
            )
            for start, end, score in self.find(text)
        ]

    def find(self, text: str) -> Iterator[tuple[int, int, float]]:
        """Yield start, end and score of each finding."""
        raise NotImplementedError


class PhoneNumbers(_NumberRecognizer):
    """Phone numbers that are valid in one of some regions.

    Args:
        supported_language: Language of the texts.
        regions: Regions whose national numbers are recognized, as ISO 3166 codes.
    """

    entity = "PHONE_NUMBER"
    _CANDIDATE = re.compile(r"(?<![\w])[+(]{0,2}\d(?:[ ().\-/\u2009]{0,3}\d){6,30}(?!\w)")
    _DATE = re.compile(
        r"\b(?:\d{4}-[01]?\d-[0-3]?\d|\d{4}/[01]?\d/[0-3]?\d"
        r"|[0-3]?\d[./][01]?\d[./](?:\d{4}|\d\d)|[01]?\d/[0-3]?\d/(?:\d{4}|\d\d))\b"
    )
    _DECIMAL = re.compile(r"\d+\.\d{5,}|\d{5,}\.\d+")

    def __init__(self, supported_language: str, regions: Sequence[str]) -> None:
        super().__init__(supported_language, PHONE_CONTEXT)
        self._regions = regions

    def find(self, text: str) -> Iterator[tuple[int, int, float]]:
        """Yield the phone numbers."""
        for candidate in self._CANDIDATE.finditer(text):
            best: dict[tuple[int, int], float] = {}
            for region in self._regions:
                self._match(text, candidate.span(), region, best)
            for (start, end), score in best.items():
                if score > 0:
                    yield start, end, score

    def _match(
        self, text: str, span: tuple[int, int], region: str, best: dict[tuple[int, int], float]
    ) -> None:
        offset, until = max(0, span[0] - 2), min(len(text), span[1] + 2)
        matcher = phonenumbers.PhoneNumberMatcher(
            text[offset:until], region, leniency=phonenumbers.Leniency.VALID
        )
        for match in matcher:
            start, end = match.start + offset, match.end + offset
            score = self._score(text, start, end, span, match.number)
            best[start, end] = max(score, best.get((start, end), 0.0))

    def _score(self, text: str, start: int, end: int, run: tuple[int, int], number: Any) -> float:
        written = text[start:end]
        if re.search(r"\+\(?\d", written):
            return STRONG
        if self._DATE.search(written) or self._DECIMAL.fullmatch(written):
            return 0.0
        if is_labelled(text, start) or is_embedded(text, start, end):
            return 0.0
        groups = re.findall(r"\d+", written)
        is_part = re.search(r"\d", text[run[0] : start] + text[end : run[1]])
        if len(groups) == 1 or is_part:
            return WEAK
        return USUAL if _is_usual_grouping(groups, number) else WEAK


def _is_usual_grouping(groups: list[str], number: Any) -> bool:
    """Return whether a national number is grouped as people of its country write it."""
    sizes = [len(group) for group in groups]
    if number.country_code == 1:
        return sizes in ([3, 3, 4], [1, 3, 3, 4])
    written = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
    return groups[0].startswith("0") and groups == re.findall(r"\d+", written)


class _Digits(NamedTuple):
    """A group of digits and its place."""

    text: str
    start: int
    end: int


class CardNumbers(_NumberRecognizer):
    """Card numbers with an issuer's prefix and a valid check digit, however they are grouped."""

    entity = "CREDIT_CARD"
    _RUN = re.compile(r"(?<!\w)\d(?:[ .\-/_]{0,3}\d){11,}+")
    _GROUP = re.compile(r"\d++(?![^\W\d_])")
    _ISSUERS = (
        (re.compile(r"4"), (13, 16, 19)),
        (re.compile(r"5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)"), (16,)),
        (re.compile(r"3[47]"), (15,)),
        (re.compile(r"6011|64[4-9]|65|62"), (16, 17, 18, 19)),
        (re.compile(r"35(?:2[89]|[3-8])"), (16, 17, 18, 19)),
        (re.compile(r"3(?:0[0-5]|095|[689])"), (14, 16)),
        (re.compile(r"50|5[6-9]|6[0-9]"), (16, 19)),
    )
    _MAX_GROUPS = 5

    def __init__(self, supported_language: str) -> None:
        super().__init__(supported_language, CARD_CONTEXT)

    def find(self, text: str) -> Iterator[tuple[int, int, float]]:
        """Yield the card numbers."""
        for run in self._RUN.finditer(text):
            groups = [
                _Digits(match.group(), match.start(), match.end())
                for match in self._GROUP.finditer(text, *run.span())
            ]
            yield from self._in_run(groups)

    def _in_run(self, groups: list[_Digits]) -> Iterator[tuple[int, int, float]]:
        first = 0
        while first < len(groups):
            last = self._longest(groups, first)
            if last is None:
                first += 1
                continue
            part = groups[first : last + 1]
            yield part[0].start, part[-1].end, self._score(part, groups)
            first = last + 1

    def _longest(self, groups: list[_Digits], first: int) -> int | None:
        """Return the last group of the longest card number that begins with a group."""
        digits, found = "", None
        for index in range(first, len(groups)):
            digits += groups[index].text
            if len(digits) > 19:
                break
            if self._is_card(digits):
                found = index
        return found

    def _is_card(self, digits: str) -> bool:
        return any(
            len(digits) in lengths and prefix.match(digits) for prefix, lengths in self._ISSUERS
        ) and _has_luhn(digits)

    def _score(self, part: list[_Digits], run: list[_Digits]) -> float:
        sizes = [len(group.text) for group in part]
        if len(sizes) == 1:
            return STRONG if sizes[0] in (15, 16) else WEAK
        is_table = len(run) > self._MAX_GROUPS and len(part) < len(run)
        is_fours = set(sizes[:-1]) == {4} and sizes[-1] <= 4
        if (is_fours or sizes in ([4, 6, 5], [4, 6, 4])) and not is_table:
            return STRONG
        is_even = len(set(sizes[:-1])) == 1 and sizes[-1] <= sizes[0]
        return STRONG if is_even and len(part) == len(run) else WEAK


def _has_luhn(digits: str) -> bool:
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + index % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


class IpAddresses(_NumberRecognizer):
    """IP addresses of hosts; neither versions, nor slices such as ``x[::2]``, nor loopback."""

    entity = "IP_ADDRESS"
    _FOUR = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?:/\d{1,2})?(?![\w]|\.\d)")
    _SIX = re.compile(
        r"(?<![\w:.])(?=[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:)[0-9A-Fa-f:]{2,39}(?:(?<=:)\d{1,3}(?:\.\d{1,3}){3})?"
        r"(?:%[0-9A-Za-z]+)?(?:/\d{1,3})?(?![\w]|:\w|\.\d)"
    )

    def __init__(self, supported_language: str) -> None:
        super().__init__(supported_language, IP_CONTEXT)

    def find(self, text: str) -> Iterator[tuple[int, int, float]]:
        """Yield the addresses."""
        for match in self._FOUR.finditer(text):
            start, end = match.span()
            is_version = is_labelled(text, start) or _is_package_version(text, start, end)
            if _is_host(match.group()) and not is_version:
                yield start, end, STRONG
        if "::" in text or text.count(":") >= 7:
            yield from self._find_six(text)

    def _find_six(self, text: str) -> Iterator[tuple[int, int, float]]:
        for match in self._SIX.finditer(text):
            written = match.group().rstrip(":") if match.group()[-2:] != "::" else match.group()
            if _is_host(written):
                groups = [group for group in re.split(r"[:%/]", written) if group]
                is_long = len(groups) >= 3 and any(len(group) >= 3 for group in groups)
                yield match.start(), match.start() + len(written), STRONG if is_long else WEAK


def _is_package_version(text: str, start: int, end: int) -> bool:
    """Return whether four numbers are part of a name or requirement: ``x==1.2.3.4``."""
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    return bool(
        re.search(r"[A-Za-z_][-_]\Z|[=<>~!]=\Z|\d[.,]\Z", before)
        or re.match(r"[-_][A-Za-z]|\.[A-Za-z]", after)
    )


def _is_host(written: str) -> bool:
    try:
        address = ipaddress.ip_interface(written).ip
    except ValueError:
        return False
    is_mask = address.version == 4 and written.startswith("255.")
    return not (address.is_loopback or address.is_unspecified or is_mask)


class SocialSecurityNumbers(UsSsnRecognizer):
    """Social security numbers: with hyphens, or in any form next to words that say so."""

    PATTERNS = [  # noqa: RUF012
        Pattern("hyphens", r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", USUAL),
        Pattern("other", r"(?<![\w.-])\d{3}[ .]?\d{2}[ .]?\d{4}(?![\w-]|\.\d)", WEAK),
    ]

    def __init__(self, supported_language: str) -> None:
        super().__init__(supported_language=supported_language, context=sorted(SSN_CONTEXT))

    def analyze(
        self,
        text: str,
        entities: list[str],
        nlp_artifacts: Any = None,
        regex_flags: int | None = None,
    ) -> list[RecognizerResult]:
        """Return the findings in a text."""
        results = super().analyze(text, entities, nlp_artifacts, regex_flags)
        return [result for result in results if not is_labelled(text, result.start)]


class SpelledEmails(PatternRecognizer):
    """E-mail addresses written as ``name at example dot com`` or ``name(at)example.com``."""

    _AT = r"\s{0,3}[(\[{<]\s{0,3}at\s{0,3}[)\]}>]\s{0,3}"
    _DOT = r"\s{0,3}[(\[{<]\s{0,3}dot\s{0,3}[)\]}>]\s{0,3}"
    _HINT = re.compile(r"[(\[{<]\s{0,3}at\s{0,3}[)\]}>]|\bdot\b", re.IGNORECASE)

    def __init__(self, supported_language: str) -> None:
        word, label = r"[A-Za-z0-9][\w.+'-]{0,63}", r"[A-Za-z0-9-]{1,63}"
        dot = rf"(?:{self._DOT}|\s{{1,3}}dot\s{{1,3}})"
        name = rf"\b{word}(?:{dot}{word}){{0,4}}"
        patterns = {
            "brackets": rf"{name}{self._AT}{label}(?:(?:{dot}|\.){label}){{1,6}}",
            "words": rf"{name}(?:\s{{1,3}}at\s{{1,3}}|@)"
            rf"{label}(?:(?:{dot}|\.){label}){{0,6}}{dot}{label}",
        }
        super().__init__(
            supported_entity="EMAIL_ADDRESS",
            supported_language=supported_language,
            patterns=[Pattern(kind, regex, STRONG) for kind, regex in patterns.items()],
        )

    def analyze(
        self,
        text: str,
        entities: list[str],
        nlp_artifacts: Any = None,
        regex_flags: int | None = None,
    ) -> list[RecognizerResult]:
        """Return the findings in a text."""
        if not self._HINT.search(text):
            return []
        results: list[RecognizerResult] = super().analyze(
            text, entities, nlp_artifacts, regex_flags
        )
        return results

    _NOT_NAMES = names(
        """
        look looks looked looking meet meets met arrive arrived stay stayed work works worked
        working is are was were be been me him her us them it here there this that these those
        """
    )
    """Words that stand before "at" in ordinary sentences."""

    def validate_result(self, pattern_text: str) -> bool:
        """Return whether the spelled address is in a public domain."""
        if pattern_text.split()[0].lower() in self._NOT_NAMES:
            return False
        dots = re.sub(rf"{self._DOT}|\s+dot\s+", ".", pattern_text, flags=re.IGNORECASE)
        host = re.split(rf"{self._AT}|\s+at\s+|@", dots, flags=re.IGNORECASE)[-1]
        return bool(tldextract.extract(host).fqdn)


class Emails(EmailRecognizer):
    """E-mail addresses; also between letters of scripts that do not separate words.

    The first pattern is Presidio's with bounds: without them, its time grows with the third power
    of the length of a text such as ``a.a.a.@``. An address has at most 254 characters (RFC 5321).
    """

    PATTERNS = [  # noqa: RUF012
        Pattern(
            "words",
            r"\b[!#$%&'*+\-/=?^_`{|}~\w][!#$%&'*+\-/=?^_`{|}~\w.]{0,253}"
            r"@\w{1,63}(?:-{1,63}\w{1,63}){0,63}(?:\.\w{1,63}(?:-{1,63}\w{1,63}){0,63}){1,126}\b",
            0.5,
        ),
        Pattern(
            "ASCII",
            r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+'-]{1,254}"
            r"@(?:[A-Za-z0-9-]{1,63}\.){1,126}[A-Za-z]{2,24}(?![A-Za-z0-9])",
            0.5,
        ),
    ]

    def __init__(self, supported_language: str) -> None:
        super().__init__(supported_language=supported_language)


def replacements(recognizer: EntityRecognizer, spec: PresidioGuardrail) -> list[EntityRecognizer]:
    """Return what takes the place of one of Presidio's recognizers."""
    language = recognizer.supported_language
    if isinstance(recognizer, SpacyRecognizer) and language not in spec.nlp_models:
        return []  # it finds nothing without a model, and would need the tokens of every text
    if isinstance(recognizer, PhoneRecognizer):
        return [PhoneNumbers(language, spec.phone_regions)]
    if isinstance(recognizer, CreditCardRecognizer):
        return [CardNumbers(language)]
    if isinstance(recognizer, IpRecognizer):
        return [IpAddresses(language)]
    if isinstance(recognizer, UsSsnRecognizer):
        return [SocialSecurityNumbers(language)]
    if isinstance(recognizer, EmailRecognizer):
        return [Emails(language), SpelledEmails(language)]
    return [recognizer]
