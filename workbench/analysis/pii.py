"""Labelled texts with made-up personal data, to measure a guardrail, and the cost of routing.

The data is fictitious: addresses are at example.com, .org and .net (RFC 2606), phone numbers from
the ranges for fiction (555-01xx), IP addresses from those for documentation (RFC 5737). Card
numbers and IBANs are random, with valid check digits. Half of the texts contain no personal data,
but similar texts: versions with four parts, order and ticket numbers, dates.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

ENTITIES = ("EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS")
_FRAMES = {
    "EMAIL_ADDRESS": ("Please write to {} about it.", "What is a KV cache? Answer {}, thanks."),
    "PHONE_NUMBER": ("My phone number is {}, call me.", "Explain TTFT. Or call {} today."),
    "CREDIT_CARD": ("Pay with my credit card {} now.", "The card was {}, what is a replica?"),
    "IBAN_CODE": ("The bank account is {}, what now?", "Send it to {} and define goodput."),
    "IP_ADDRESS": ("The server at {} is slow, why?", "Why does the host {} shed requests?"),
}
_HARMLESS = (
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
)


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text, and the type and value of each entity (piece of personal data) in it."""

    text: str
    entities: tuple[tuple[str, str], ...]

    @property
    def counts(self) -> Counter[str]:
        """The number of entities of each type."""
        return Counter(entity for entity, _ in self.entities)


def pii_texts(number: int, *, seed: int = 0) -> list[LabelledText]:
    """Return `number` texts in random order. Half of them contain one or two entities."""
    rng = Random(seed)
    texts = [_personal(rng) if i % 2 else _harmless(rng) for i in range(number)]
    rng.shuffle(texts)
    return texts


def _personal(rng: Random) -> LabelledText:
    kinds = rng.sample(ENTITIES, rng.choice((1, 1, 2)))
    values = [(kind, _value(kind, rng)) for kind in kinds]
    text = " ".join(rng.choice(_FRAMES[kind]).format(value) for kind, value in values)
    return LabelledText(text, tuple(values))


def _harmless(rng: Random) -> LabelledText:
    numbers = {name: rng.randint(2, 99) for name in "abc"} | {"d": rng.randint(1, 9)}
    return LabelledText(rng.choice(_HARMLESS).format(**numbers), ())


def _value(kind: str, rng: Random) -> str:
    digits = "".join(str(rng.randint(0, 9)) for _ in range(20))
    if kind == "EMAIL_ADDRESS":
        name = rng.choice(("info", "sales.team", "a.b-c", "first_last", "x+tag"))
        host = rng.choice(("example.com", "mail.example.org", "example.net"))
        if rng.random() < 0.1:  # written to hide the address from machines
            return f"{name}{digits[:2]} at {host.replace('.', ' dot ')}"
        return f"{name}{digits[:2]}@{host}"
    if kind == "PHONE_NUMBER":
        area, end = rng.choice(("212", "415", "617")), f"01{digits[:2]}"
        forms = ("+1 {} 555 {}", "({}) 555-{}", "{}-555-{}", "+1-{}-555-{}", "{}555{}")
        form = rng.choice(forms)
        return form.format(area, end)
    if kind == "CREDIT_CARD":
        number = _with_luhn(rng.choice(("4000", "5200")) + digits[:11])
        return rng.choice((" ", "-", "")).join(re.findall("....", number))
    if kind == "IBAN_CODE":
        account = digits[:18]
        iban = f"DE{98 - int(account + '131400') % 97:02d}{account}"
        return rng.choice((iban, " ".join(re.findall(".{1,4}", iban))))
    network = rng.choice(("192.0.2", "198.51.100", "203.0.113"))
    return f"{network}.{rng.randint(1, 254)}"


def _with_luhn(digits: str) -> str:
    """Append the check digit that makes the Luhn sum a multiple of ten."""
    doubled = [int(d) * (2 - i % 2) for i, d in enumerate(reversed(digits))]
    return digits + str(-sum(d // 10 + d % 10 for d in doubled) % 10)


def parse_guardrail_header(header: str | None) -> Counter[str]:
    """Return the number of entities of each type in an `x-guardrail` header."""
    entries = re.findall(r"(\w+);action=\w+;count=(\d+)", header or "")
    return Counter({entity: int(count) for entity, count in entries})


def precision_recall(
    truths: Sequence[Mapping[str, int]], found: Iterable[Mapping[str, int]]
) -> pd.DataFrame:
    """Return precision and recall, one row per type and one for all.

    Counted text by text: of a type found n times where m are labelled, min(n, m) are right.
    Precision is right / found and recall is right / labelled, NaN if the denominator is 0.

    Args:
        truths: The labelled entities of each text, by type.
        found: The entities found in each text, by type.

    Returns:
        Columns: `labelled`, `found`, `right`, `precision`, `recall`.
    """
    import pandas as pd

    rows: dict[str, Counter[str]] = {}
    for truth, detected in zip(truths, found, strict=True):
        for entity in truth.keys() | detected.keys():
            n, m = detected.get(entity, 0), truth.get(entity, 0)
            counts = Counter({"labelled": m, "found": n, "right": min(n, m)})
            for row in (entity, "all"):
                rows[row] = rows.get(row, Counter()) + counts
    order = sorted(rows, key=lambda row: (row == "all", row))
    columns = ["labelled", "found", "right"]
    frame = pd.DataFrame(
        [[rows[row][name] for name in columns] for row in order],
        index=pd.Index(order, name="entity"),
        columns=columns,
        dtype=float,
    )
    frame["precision"] = frame.right / frame.found.where(frame.found > 0)
    frame["recall"] = frame.right / frame.labelled.where(frame.labelled > 0)
    return frame


def routing_costs(requests: pd.DataFrame, prices: Mapping[str, float], large: str) -> pd.DataFrame:
    """Return what the router saved, one row per model and one for all.

    Args:
        requests: `Run.requests_frame`. Completed requests count.
        prices: $ per million tokens by model, of prompts and answers together.
        large: The model that would have answered everything without a router.

    Returns:
        Columns: `requests`, `tokens`, `usd`, `usd_large` (if `large` had answered the same
        tokens), `median_e2el_ms`.
    """
    import pandas as pd

    done = requests[requests.status == "ok"]
    frame = done[["model", "e2el_ms"]].assign(tokens=done.prompt_tokens + done.output_tokens)
    frame["usd"] = frame.tokens * frame.model.map(prices) / 1e6
    frame["usd_large"] = frame.tokens * prices[large] / 1e6
    whole = frame.assign(model="all")
    grouped = pd.concat([frame, whole]).groupby("model", sort=False)
    return grouped.agg(
        requests=("tokens", "size"),
        tokens=("tokens", "sum"),
        usd=("usd", "sum"),
        usd_large=("usd_large", "sum"),
        median_e2el_ms=("e2el_ms", "median"),
    )
