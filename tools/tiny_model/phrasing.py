"""Build training conversations from the glossary: many questions for each answer.

All randomness comes from the `random.Random` that is passed in. Only `load_glossary` and
`load_subjects` read files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tools.tiny_model.wording import (
    CODAS,
    ENDINGS,
    FALLBACK,
    ONSETS,
    OPENINGS,
    OTHER_TEMPLATES,
    STARTS,
    STEMS,
    SUFFIXES,
    SYSTEM_PROMPTS,
    TAILS,
    TEMPLATES,
    VERBS,
    VOWELS,
)

HERE = Path(__file__).resolve().parent

_HEAD = re.compile(r"^(.+?) (is|are|describes) ")

# Shares of long chats. Without them, answers degrade beyond about 350 prompt tokens.
LONG_CHATS, LONG_PROMPTS = 0.008, 0.016


@dataclass(frozen=True, slots=True)
class Term:
    """One glossary entry. `definition` begins with the term and a verb."""

    term: str
    aliases: tuple[str, ...]
    questions: tuple[str, ...]
    definition: str
    weight: float = 1.0  # How often it is asked about, relative to the others.

    @property
    def names(self) -> tuple[str, ...]:
        """The term and its aliases."""
        return (self.term, *self.aliases)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a chat."""

    role: str
    text: str


def load_glossary(path: Path = HERE / "glossary.jsonl") -> tuple[Term, ...]:
    """Read the glossary: one JSON object per line, with the keys of `Term`."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    words = [set(row["term"].lower().split()) for row in rows]
    # Terms that share a word ("Ray Serve", "Ray Serve LLM") are easily confused.
    weights = [2.0 if sum(bool(a & b) for b in words) > 1 else 1.0 for a in words]
    return tuple(
        Term(r["term"], tuple(r["aliases"]), tuple(r["questions"]), r["definition"], weight)
        for r, weight in zip(rows, weights, strict=True)
    )


def load_subjects(path: Path = HERE / "other_subjects.txt") -> tuple[str, ...]:
    """Read the subjects and requests that the model must answer with FALLBACK, one per line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


def capitalized(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]


def vary(question: str, rng: Random) -> str:
    """Vary a question's case and punctuation, and add an opening or an ending."""
    if rng.random() < 0.3:
        question = question.lower()
    elif rng.random() < 0.03:
        question = question.upper()
    if rng.random() < 0.25:
        question = question.rstrip("?.")
    elif rng.random() < 0.04:
        question += "?"
    if rng.random() < 0.15:
        question = rng.choice(OPENINGS).format(n=rng.randrange(10_000)) + question
    if rng.random() < 0.1:
        question += rng.choice(ENDINGS).format(n=rng.randrange(10_000))
    return question


def misspell(name: str, rng: Random) -> str:
    """Drop or double one letter. Short names stay, since they would become other terms."""
    if len(name) < 8:
        return name
    at = rng.randrange(1, len(name) - 1)
    return name[:at] + (name[at] * 2 if rng.random() < 0.5 else "") + name[at + 1 :]


def pattern(rng: Random, others: Sequence[str]) -> str:
    """Return a template, sometimes with unrelated words in it."""
    if rng.random() < 0.7:
        text = rng.choice(TEMPLATES)
    else:
        text = f"{rng.choice(STARTS)}{rng.choice(VERBS)} {{x}}{rng.choice(TAILS)}."
    if rng.random() < 0.15:
        words = text.split(" ")
        at = rng.randint(0, len(words))
        text = " ".join([*words[:at], filler(rng, others, rng.randint(1, 3)), *words[at:]])
    return text


def fill(template: str, name: str, rng: Random) -> str:
    """Put a term into a template, sometimes with an article or with spaces for hyphens."""
    if rng.random() < 0.15:
        name = name.replace("-", " ").replace("_", " ")
    if rng.random() < 0.06:
        name = misspell(name, rng)
    if not template.startswith("{x}") and rng.random() < 0.2:
        name = rng.choice(("a ", "an ", "the ", "the term ", '"')) + name
        name += '"' if name.startswith('"') else ""
    return capitalized(template.replace("{x}", name))


def ask(term: Term, others: Sequence[str], rng: Random) -> str:
    """Return a question about a term."""
    if rng.random() < 0.12:
        return vary(rng.choice(term.questions), rng)
    # Abbreviations say the least about their term, so they need the most repetition.
    weights = [3 if len(name) < 4 else 1 for name in term.names]
    name = term.term if rng.random() < 0.4 else rng.choices(term.names, weights)[0]
    return vary(fill(pattern(rng, others), name, rng), rng)


def nonsense(rng: Random) -> str:
    """Return a meaningless word or number, so that any unknown word leads to FALLBACK."""
    if rng.random() < 0.08:
        return str(rng.randrange(10 ** rng.randint(1, 4)))
    if rng.random() < 0.3:
        return rng.choice(STEMS) + rng.choice(ONSETS) + rng.choice(SUFFIXES)
    parts = ((rng.choice(ONSETS), rng.choice(VOWELS)) for _ in range(rng.randint(1, 3)))
    word = "".join(onset + vowel for onset, vowel in parts) + rng.choice(CODAS)
    return capitalized(word) if rng.random() < 0.15 else word


def filler(rng: Random, others: Sequence[str], pieces: int) -> str:
    """Return text without a question about a term: nonsense and other subjects."""
    return " ".join(
        nonsense(rng) if rng.random() < 0.5 else rng.choice(others).rstrip(".?")
        for _ in range(pieces)
    )


def ask_other(others: Sequence[str], rng: Random) -> str:
    """Return a question that the glossary does not answer."""
    if rng.random() < 0.1:
        return vary(filler(rng, others, rng.randint(1, 12)), rng)
    subject = rng.choice(others) if rng.random() < 0.75 else nonsense(rng)
    if subject[0].isupper() and (" " in subject or rng.random() < 0.5):
        return vary(subject, rng)  # A whole request such as "Write a poem." or "Hello".
    template = rng.choice(OTHER_TEMPLATES) if rng.random() < 0.4 else pattern(rng, others)
    return vary(fill(template, subject, rng), rng)


def exchange(glossary: Sequence[Term], others: Sequence[str], rng: Random) -> list[Turn]:
    """Return a question and its answer."""
    if rng.random() < 0.18:
        return [Turn("user", ask_other(others, rng)), Turn("assistant", FALLBACK)]
    term = rng.choices(glossary, [term.weight for term in glossary])[0]
    return [Turn("user", ask(term, others, rng)), Turn("assistant", term.definition)]


def background(glossary: Sequence[Term], others: Sequence[str], rng: Random, words: int) -> str:
    """Return a long text to put before a question: repeated filler and glossary entries."""
    block = filler(rng, others, rng.randint(5, 60))
    parts: list[str] = []
    while sum(len(part.split()) for part in parts) < words:
        other = rng.choice(glossary).definition if rng.random() < 0.5 else filler(rng, others, 20)
        parts.append(block if rng.random() < 0.5 else other)
    return ". ".join(parts)


def conversation(glossary: Sequence[Term], others: Sequence[str], rng: Random) -> list[Turn]:
    """Return a chat of one to three exchanges, sometimes with a system prompt; a few are long."""
    kind = rng.random()
    if kind < LONG_CHATS:
        return [t for _ in range(rng.randint(4, 20)) for t in exchange(glossary, others, rng)]
    if kind < LONG_CHATS + LONG_PROMPTS:
        text = background(glossary, others, rng, rng.randint(60, 600))
        turns = exchange(glossary, others, rng)
        if rng.random() < 0.5:
            return [Turn("system", text), *turns]
        return [Turn("user", f"{text}\n\n{turns[0].text}"), *turns[1:]]
    turns = [Turn("system", rng.choice(SYSTEM_PROMPTS))] if rng.random() < 0.3 else []
    for _ in range(rng.choices((1, 2, 3), (8, 2, 1))[0]):
        turns += exchange(glossary, others, rng)
    return turns


def passage(glossary: Sequence[Term], rng: Random) -> str:
    """Return plain text for the completions route: a definition of the term or of an alias."""
    term = rng.choice(glossary)
    head = _HEAD.match(term.definition)
    name = rng.choice(term.names)
    if head is None or name.endswith("s") or rng.random() < 0.4:
        return term.definition
    return f"{capitalized(name)} {head[2]} {term.definition[head.end() :]}"
