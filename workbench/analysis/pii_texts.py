"""Labelled texts with made-up personal data, to measure a guardrail.

There are two sets. The *tuning* set was used to choose the guardrail's rules and scores; the
*reporting* set was written before that and only measures. They share no sentence, no form of a
number and no disguise.

The data is fictitious: addresses are at example.com, .org, .net and .edu (RFC 2606), phone numbers
from the ranges for fiction (555-01xx in North America, Ofcom's in the United Kingdom), IP addresses
from those for documentation (RFC 5737, RFC 3849), social security numbers from those for
advertisements (987-65-4321 to 4329). Card numbers and IBANs are random, with valid check digits.
Half of the texts contain no personal data, but similar texts: versions with four parts, order and
ticket numbers, timestamps, dates, prices.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Literal

ENTITIES = (
    "EMAIL_ADDRESS",
    "PHONE_NUMBER",
    "CREDIT_CARD",
    "IBAN_CODE",
    "IP_ADDRESS",
    "US_SSN",
)
DISGUISED_SHARE = 0.3
"""Share of the personal data that is written to hide it from machines."""

Split = Literal["tuning", "reporting"]
Disguise = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text, and the type and value of each entity (piece of personal data) in it."""

    text: str
    entities: tuple[tuple[str, str], ...]

    @property
    def counts(self) -> Counter[str]:
        """The number of entities of each type."""
        return Counter(entity for entity, _ in self.entities)


def pii_texts(number: int, *, seed: int = 0, split: Split = "reporting") -> list[LabelledText]:
    """Return ``number`` texts in random order. Half of them contain one or two entities.

    Args:
        number: How many texts.
        seed: Determines the texts.
        split: The set: ``reporting`` to measure a guardrail, ``tuning`` to change its rules.
    """
    rng = Random(f"{split}-{seed}")
    source = SOURCES[split](rng)
    texts = [source.personal() if i % 2 else source.harmless() for i in range(number)]
    rng.shuffle(texts)
    return texts


class TextSource(ABC):
    """Draws the texts of one set."""

    frames: ClassVar[Mapping[str, Sequence[str]]]
    """Sentences around an entity, by its type."""
    harmless_frames: ClassVar[Sequence[str]]
    """Sentences around ``{a}``, ``{b}``, ``{c}`` (2 to 99) and ``{d}`` (1 to 9)."""
    disguises: ClassVar[Mapping[str, Sequence[Disguise]]]
    """Ways to hide an entity, by its type."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng

    def personal(self) -> LabelledText:
        """Return a text with one or two entities."""
        kinds = self.rng.sample(ENTITIES, self.rng.choice((1, 1, 2)))
        values = [(kind, self._written(kind)) for kind in kinds]
        text = " ".join(self.rng.choice(self.frames[kind]).format(value) for kind, value in values)
        return LabelledText(text, tuple(values))

    def harmless(self) -> LabelledText:
        """Return a text without personal data."""
        numbers = {name: self.rng.randint(2, 99) for name in "abc"} | {"d": self.rng.randint(1, 9)}
        return LabelledText(self.rng.choice(self.harmless_frames).format(**numbers), ())

    def _written(self, kind: str) -> str:
        value = self.value(kind)
        if self.rng.random() < DISGUISED_SHARE:
            return self.rng.choice(self.disguises[kind])(value)
        return value

    @abstractmethod
    def value(self, kind: str) -> str:
        """Return a plain entity."""

    def digits(self, number: int) -> str:
        """Return random digits."""
        return "".join(str(self.rng.randint(0, 9)) for _ in range(number))


def with_luhn(digits: str) -> str:
    """Append the check digit that makes the Luhn sum a multiple of ten."""
    doubled = [int(d) * (2 - i % 2) for i, d in enumerate(reversed(digits))]
    return digits + str(-sum(d // 10 + d % 10 for d in doubled) % 10)


def with_iban_check(country: str, account: str) -> str:
    """Return an IBAN with the check digits of ISO 13616."""
    number = "".join(str(int(char, 36)) for char in account + country + "00")
    return f"{country}{98 - int(number) % 97:02d}{account}"


def _groups(text: str, *sizes: int) -> list[str]:
    """Return parts of ``text`` of the given sizes, the last size again for the rest."""
    parts, position = [], 0
    for size in (*sizes, *[sizes[-1]] * len(text)):
        if part := text[position : position + size]:
            parts.append(part)
        position += size
    return parts


def _between(separator: str, every: int = 1) -> Disguise:
    """Return a disguise that puts something after every few characters."""
    return lambda value: separator.join(_groups(value, every))


def _for(characters: str, separator: str) -> Disguise:
    """Return a disguise that writes something else for some characters."""
    return lambda value: "".join(separator if char in characters else char for char in value)


def _full_width(value: str) -> str:
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in value)


# The reporting set. It was written before the guardrail was tuned; never tune on it.


def _all_percent(value: str) -> str:
    return "".join(f"%{byte:02X}" for byte in value.encode())


def _hex_entities(value: str) -> str:
    return re.sub(r"[@.:\d]", lambda match: f"&#x{ord(match.group()):x};", value)


def _spelled_in_brackets(value: str) -> str:
    return value.replace("@", " [at] ").replace(".", " [dot] ")


def _monospace(value: str) -> str:
    letters = re.sub(r"[A-Z]", lambda match: chr(0x1D670 + ord(match.group()) - 65), value)
    return re.sub(r"\d", lambda match: chr(0x1D7F6 + int(match.group())), letters)


def _mathematical_digits(value: str) -> str:
    return re.sub(r"\d", lambda match: chr(0x1D7CE + int(match.group())), value)


class _ReportingTexts(TextSource):
    frames: ClassVar = {
        "EMAIL_ADDRESS": (
            "Forward the summary to {} before noon.",
            "{} asked whether the batch size matters.",
            "Contact: {}. Why is decoding bound by memory?",
            "Translate: 'my address is {}'.",
        ),
        "PHONE_NUMBER": (
            "You can reach me at {} after six.",
            "Her mobile is {}; text her about the outage.",
            "Tel. {} - what does speculative decoding do?",
            "Phone: {}\nTopic: throughput",
        ),
        "CREDIT_CARD": (
            "Please charge {} for the subscription.",
            "The Visa or Mastercard number is {}.",
            "Is {} still a valid payment card?",
            "cc: {} / what is tensor parallelism?",
        ),
        "IBAN_CODE": (
            "Transfer the refund to {} please.",
            "IBAN: {}. When does the cache evict?",
            "My new account, {}, replaces the old one.",
        ),
        "IP_ADDRESS": (
            "Requests from {} time out, what now?",
            "Add {} to the allow list.",
            "The client address was {} when it failed.",
            "ping {} loses packets",
        ),
        "US_SSN": (
            "His social security number is {}.",
            "SSN {} appears twice in the form.",
            "For payroll we need the SSN, {}, today.",
        ),
    }
    harmless_frames: ClassVar = (
        "The event at 17{a:02d}{b:02d}{c:02d}{d}{d} has no trace id.",
        "Created 17{a:02d}{b:02d}{c:02d}{d}{d}{a:02d}{d} ms after the epoch, why?",
        "SKU {a:02d}{b:02d}{c:02d}{d}{d} is out of stock.",
        "Product id 4{a:02d}{b:02d}{c:02d}{d}{d}{d} was renamed.",
        "Purchase order 20{a:02d}{b:02d}-{c:02d}{d}{d}{d} has shipped.",
        "Release {a}.{b}.{c}.{d} fixes the scheduler.",
        "Firmware {a}.{b}.{c}.{d} and build {b}.{a}.{d}.{c} differ.",
        "See section {d}.{a}.{b}.{c} of the manual.",
        "Pi is 3.14159265358979 and the loss {d}.{a:02d}{b:02d}{c:02d}{a:02d}{b:02d}.",
        "Why does x[::{d}] equal x[0:{a}:{d}]?",
        "weights[{a}][{b}][{c}] is NaN at step {a}{b:02d}{c:02d}.",
        "It costs ${d},{a:02d}{d}.{b:02d} or {d} {a:02d}{d},{c:02d} EUR.",
        "Between 0{d}/1{d}/2024 and 1{d}.0{d}.2025 10:{a:02d}:{b:02d}, what changed?",
        "Timestamp 2024-0{d}-1{d}T0{d}:{a:02d}:{b:02d}.{c:02d}{d}Z looks wrong.",
        "The model has {d}{a:02d}{b:02d}{c:02d}{a:02d}{d} parameters.",
        "The seed is {d}{a:02d}{b:02d}{c:02d}{a:02d}{d}, is that a prime?",
        "EAN 9{a:02d}{b:02d}{c:02d}{a:02d}{b:02d}{c:02d} is on the box.",
        "Lot 5{d}{d}-4{d}-1{a:02d}{d} was recalled.",
        "Invoice 555-0{a:02d}-2{b:02d}{d} is overdue, how do I write a reminder?",
        "Part 9{d}{d}-{a:02d}{b:02d}-{c:02d}{d} replaces part {c:02d}{d}-{a:02d}.",
        "Compare std::vector<int> with a::b and [{a}::{d}].",
        "Latency was {a}{b:02d}.{c:02d} ms at {d}{a:02d} rps, p50 {c}.{b:02d}.",
        "The three counters read 2{a:02d}, 5{b:02d} and 0{c:02d}{d}{d}.",
        "npm install left-pad@1.{d}.{a} fails on node@{b}.",
        "Ports 8{d}{a:02d} to 65535 are open.",
        "Commit 9fceb{a:02d}d0ae598e95dc970b74767f19372d61af8 broke it.",
        "Trace 123e4567-e89b-12d3-a456-4266141740{a:02d} has no spans.",
        "Coordinates 52.{a:02d}{b:02d}{c:02d}, 13.{c:02d}{b:02d}{a:02d} are in a park.",
        "Tensor of shape {a} x {b} x {c} x 128 with {d} heads",
        "user_id={d}{a:02d}{b:02d}{c:02d}{a:02d}{d} not found in shard {b}",
        "GPU memory: {a}{b:02d}{c:02d} MiB of 8{d}920 MiB, {b} percent",
        "Call number QA76.{a}.{b} is on shelf {c}.",
        "Request {d}{a:02d}-{b:02d}{d}-{c:02d}{a:02d} returned status 500.",
    )
    disguises: ClassVar = {
        "EMAIL_ADDRESS": (
            _between("\u200d", 3),
            _between("\ufeff", 5),
            _between("\u2060", 2),
            _spelled_in_brackets,
            _hex_entities,
            _all_percent,
            _for("@", "\\u0040"),
            _for("@", "%2540"),
            _for("@", "&amp;commat;"),
            lambda value: _full_width(value).replace("＠", "＠\u200d"),
        ),
        "PHONE_NUMBER": (
            _for(" -", "\u2009"),
            _for(" -", "\u2010"),
            _for(" -", "\u2013"),
            _for(" -", "\r\n"),
            _for(" -", "."),
            _for(" -", "%20"),
            _mathematical_digits,
            _hex_entities,
        ),
        "CREDIT_CARD": (
            lambda value: _between("\u202f", 4)(re.sub(r"\D", "", value)),
            lambda value: _between(".", 4)(re.sub(r"\D", "", value)),
            lambda value: _between("\r\n", 4)(re.sub(r"\D", "", value)),
            lambda value: _between("\u2010", 4)(re.sub(r"\D", "", value)),
            lambda value: _between(" ", 1)(re.sub(r"\D", "", value)),
            _mathematical_digits,
            _hex_entities,
            _all_percent,
        ),
        "IBAN_CODE": (
            _between("\u2060", 4),
            lambda value: _between("\u2009", 4)(value.replace(" ", "")),
            lambda value: _between("%20", 4)(value.replace(" ", "")),
            _monospace,
            _hex_entities,
        ),
        "IP_ADDRESS": (
            _between("\u2060", 2),
            _hex_entities,
            _for(".", "\u2024"),
            _mathematical_digits,
            _all_percent,
        ),
        "US_SSN": (
            _for("-", "\u2010"),
            _for("-", "\u2009"),
            _for("-", "."),
            _hex_entities,
            _mathematical_digits,
        ),
    }

    def value(self, kind: str) -> str:
        """Return a plain entity."""
        rng = self.rng
        if kind == "EMAIL_ADDRESS":
            name = rng.choice(("k.larsson", "maria_olsen", "team+news", "o'brien", "lab-7"))
            host = rng.choice(("example.edu", "corp.example.net", "example.org", "a-b.example.com"))
            return f"{name}{self.digits(1)}@{host}"
        if kind == "PHONE_NUMBER":
            area, end = rng.choice(("303", "503", "702", "808")), self.digits(2)
            return rng.choice(
                (
                    f"+44 20 7946 0{self.digits(3)}",
                    f"07700 900{self.digits(3)}",
                    f"+1-{area}-555-01{end}",
                    f"({area}) 555 01{end}",
                    f"{area} 555 01{end}",
                    f"1-{area}-555-01{end}",
                )
            )
        if kind == "CREDIT_CARD":
            prefix, length = rng.choice((("4539", 16), ("5105", 16), ("6011", 16), ("3714", 15)))
            number = with_luhn(prefix + self.digits(length - 5))
            sizes = (4, 6, 5) if length == 15 else (4,)
            return rng.choice((" ", "-", "")).join(_groups(number, *sizes))
        if kind == "IBAN_CODE":
            country, account = rng.choice(
                (
                    ("GB", f"WEST{self.digits(14)}"),
                    ("NL", f"ABNA{self.digits(10)}"),
                    ("FR", self.digits(23)),
                )
            )
            return rng.choice(("", " ")).join(_groups(with_iban_check(country, account), 4))
        if kind == "IP_ADDRESS":
            network = rng.choice(("198.51.100", "203.0.113"))
            return rng.choice(
                (
                    f"{network}.{rng.randint(1, 254)}",
                    f"2001:db8::{rng.randint(0x100, 0xFFFF):x}:{rng.randint(1, 0xFFFF):x}",
                    f"2001:db8:{self.digits(1)}:0:0:{self.digits(3)}:0:{rng.randint(1, 9)}",
                )
            )
        return f"987-65-43{rng.randint(25, 29)}"


# The tuning set.


def _spelled(value: str) -> str:
    return value.replace("@", " at ").replace(".", " dot ")


def _spelled_in_parentheses(value: str) -> str:
    return value.replace("@", "(at)")


def _decimal_entities(value: str) -> str:
    return re.sub(r"[@\d]", lambda match: f"&#{ord(match.group())};", value)


class _TuningTexts(TextSource):
    frames: ClassVar = {
        "EMAIL_ADDRESS": (
            "Please write to {} about it.",
            "What is a KV cache? Answer {}, thanks.",
        ),
        "PHONE_NUMBER": (
            "My phone number is {}, call me.",
            "Explain TTFT. Or call {} today.",
            "Ring {} if prefill fails.",
            "She left her number: {}",
        ),
        "CREDIT_CARD": (
            "Pay with my credit card {} now.",
            "The card was {}, what is a replica?",
            "Use {} to renew.",
        ),
        "IBAN_CODE": ("The bank account is {}, what now?", "Send it to {} and define goodput."),
        "IP_ADDRESS": (
            "The server at {} is slow, why?",
            "Why does the host {} shed requests?",
            "{} is unreachable",
        ),
        "US_SSN": (
            "My SSN is {}, is that a problem?",
            "Social security: {}. What is a token?",
        ),
    }
    harmless_frames: ClassVar = (
        "What is version {a}.{b}.{c} of the engine?",
        "Order number {a}{b}{c}-{b}, what is batching?",
        "Between 2024-0{d}-1{d} and 2025-0{d}-2{d}, what is a token?",
        "Why is the ratio {a}:{b} and not {c}%?",
        "Is the mailbox user@localhost a queue?",
        "What does block size {a} with {b} heads of {c} mean?",
        "Run {a} of {b}: p99 was {c}{a}.{b} ms, is that a knee?",
        "The checksum ends in {a}{b}{c}{d}, what is prefill?",
        "Is driver {a}.{b}.{c}.{d} older than {a}.{b}.{c}?",
        "Ticket 415-555-01{b:02d} asks what a KV cache is.",
        "Job 2125550{a:02d}{d} failed, what is preemption?",
        "It started at epoch 16{a:02d}{b:02d}{c:02d}{d}{d}, how long ago is that?",
        "PO-{a:02d}{b:02d}{c:02d}-{d}{a:02d}{d} is late.",
        "Upgrade to v{a}.{b}.{d}.{c} first.",
        "a[{a}:{b}] and a[::-{d}] and a[{d}::{c}]",
        "The sum is {a}{b:02d}{c:02d}.{d}{a:02d} and the mean {d}.{c:02d}{b:02d}.",
        "Price: {a}.{b:02d}{d},{c:02d} or {a}'{b:02d}{d}.50 CHF",
        "The item number {d}{a:02d}{b:02d}{c:02d}{a:02d}{d} was sold {c} times.",
        "Case {d}{a:02d}-{b:02d}-{c:02d}{a:02d} was closed.",
        "Serial 987-{a:02d}{b:02d}-{c:02d}{d}{d} is engraved.",
        "The barcode says 4{a:02d}{b:02d}{c:02d}{a:02d}{b:02d}{c:02d}.",
        "Sleep until {a:02d}:{b:02d}::{d} is invalid syntax.",
        "git@{a}.{b} is no host",
        "Index {d}{a:02d}{b:02d}{c:02d} of {d}{d}{a:02d}{b:02d}{c:02d}",
        "The population was {d} {a:02d}{d} {b:02d}{d} {c:02d}{d} in 2020",
        "Sizes: 128 256 512 1024 2048 4096 8192 and {a}",
        "4{a:02d}{d} 5{b:02d}{d} 6{c:02d}{d} 4{b:02d}{d} 4{c:02d}{d} 5{a:02d}{d}",
        "Run id 20240{d}1{d}{a:02d}{b:02d}{c:02d} took {d} s",
    )
    disguises: ClassVar = {
        "EMAIL_ADDRESS": (
            _spelled,
            _spelled_in_parentheses,
            _between("\u200b", 2),
            _full_width,
            _decimal_entities,
            _for("@", "%40"),
            _for("@", "&commat;"),
        ),
        "PHONE_NUMBER": (
            _for(" -", "\u2011"),
            _for(" -", "\u00a0"),
            _for(" -", "\n"),
            _for(" -", "\u00b7"),
            _full_width,
            _decimal_entities,
        ),
        "CREDIT_CARD": (
            lambda value: _between("\u2011", 4)(re.sub(r"\D", "", value)),
            lambda value: _between("\u00a0", 4)(re.sub(r"\D", "", value)),
            lambda value: _between("\n", 4)(re.sub(r"\D", "", value)),
            lambda value: _between("\u00b7", 4)(re.sub(r"\D", "", value)),
            lambda value: _between(" ", 2)(re.sub(r"\D", "", value)),
            _between("\u200b", 2),
            _full_width,
            _decimal_entities,
        ),
        "IBAN_CODE": (
            _between("\u200b", 2),
            lambda value: _between("\u00a0", 4)(value.replace(" ", "")),
            lambda value: _between("\n", 4)(value.replace(" ", "")),
            _decimal_entities,
        ),
        "IP_ADDRESS": (_between("\u200b", 2), _full_width, _decimal_entities),
        "US_SSN": (_for("-", "\u2011"), _for("-", "\u00a0"), _full_width, _decimal_entities),
    }

    def value(self, kind: str) -> str:
        """Return a plain entity."""
        rng = self.rng
        if kind == "EMAIL_ADDRESS":
            name = rng.choice(("info", "sales.team", "a.b-c", "first_last", "x+tag"))
            host = rng.choice(("example.com", "mail.example.org", "example.net"))
            return f"{name}{self.digits(2)}@{host}"
        if kind == "PHONE_NUMBER":
            area, end = rng.choice(("212", "415", "617")), f"01{self.digits(2)}"
            forms = ("+1 {} 555 {}", "({}) 555-{}", "{}-555-{}", "+1 ({}) 555-{}", "{}555{}")
            british = f"0113 496 0{self.digits(3)}", f"+44 113 496 0{self.digits(3)}"
            return rng.choice((*(form.format(area, end) for form in forms), *british))
        if kind == "CREDIT_CARD":
            number = with_luhn(rng.choice(("4000", "5200", "2221", "3528")) + self.digits(11))
            return rng.choice((" ", "-", "")).join(_groups(number, 4))
        if kind == "IBAN_CODE":
            country, digits = rng.choice((("DE", 18), ("AT", 16)))
            iban = with_iban_check(country, self.digits(digits))
            return rng.choice(("", " ")).join(_groups(iban, 4))
        if kind == "IP_ADDRESS":
            return rng.choice(
                (
                    f"192.0.2.{rng.randint(1, 254)}",
                    f"2001:db8:{rng.randint(0x1000, 0xFFFF):x}::{rng.randint(1, 0xFFFF):x}",
                )
            )
        return f"987-65-43{rng.randint(21, 24)}"


SOURCES: Mapping[Split, type[TextSource]] = {
    "tuning": _TuningTexts,
    "reporting": _ReportingTexts,
}
"""What draws the texts of each set."""
