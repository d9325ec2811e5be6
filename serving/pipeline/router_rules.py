"""Which model answers, by rule: pure functions of a request's facts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import NamedTuple

from serving.spec.router import (
    BudgetRule,
    CodeRule,
    LanguageRule,
    LengthRule,
    RouterSpec,
    TenantRule,
)

CHARS_PER_TOKEN = 4
"""For an estimate before anything is tokenized; English has about four."""

Embed = Callable[[str], Mapping[str, float]]
"""A classifier: the similarity of a text to each model's examples."""


class RoutingInput(NamedTuple):
    """What a router knows of a request."""

    texts: tuple[str, ...]
    """Every message's or prompt's text, the last one last."""
    max_tokens: int | None
    tenant: str | None
    budget: str | None
    """What the request's budget header holds."""

    @property
    def chars(self) -> int:
        """Characters of all texts."""
        return sum(map(len, self.texts))


class Decision(NamedTuple):
    """The model that should answer, and why; the reason holds no text of the request."""

    model: str
    reason: str


def decide(
    facts: RoutingInput, spec: RouterSpec, models: tuple[str, ...], embed: Embed | None = None
) -> Decision:
    """The first rule that holds, then the classifier, then the default."""
    for number, rule in enumerate(spec.rules, 1):
        match rule:
            case LengthRule():
                reason = _length(rule, facts)
            case CodeRule():
                reason = "the request holds code" if any(map(holds_code, facts.texts)) else None
            case LanguageRule():
                found = language(facts.texts[-1] if facts.texts else "")
                reason = f"the language is {found}" if found in rule.languages else None
            case TenantRule():
                reason = f"the tenant is {facts.tenant}" if facts.tenant in rule.tenants else None
            case BudgetRule():
                if chosen := _affordable(rule, facts, models):
                    return Decision(chosen[0], f"rule {number}: {chosen[1]}")
                continue
        if reason is not None:
            return Decision(rule.model, f"rule {number}: {reason}")
    if embed is not None and spec.classifier is not None:
        decision = _nearest(embed("\n".join(facts.texts)), spec.classifier.min_margin)
        if decision is not None:
            return decision
    return Decision(spec.default or models[0], "default")


def _length(rule: LengthRule, facts: RoutingInput) -> str | None:
    above = rule.max_chars is not None and facts.chars > rule.max_chars
    return None if above or facts.chars < rule.min_chars else f"{facts.chars} characters"


def _affordable(
    rule: BudgetRule, facts: RoutingInput, models: Iterable[str]
) -> tuple[str, str] | None:
    budget = _number(facts.budget) or rule.usd_per_request
    if budget is None:
        return None
    tokens = facts.chars / CHARS_PER_TOKEN + (facts.max_tokens or rule.default_max_tokens)
    prices = rule.usd_per_million_tokens
    costs = {model: tokens * prices[model] / 1e6 for model in models if model in prices}
    within = [model for model, cost in costs.items() if cost <= budget]
    model = within[0] if within else min(costs, key=lambda one: costs[one])
    relation = "within" if within else "the cheapest, above"
    return model, f"${costs[model]:.3g} is {relation} the budget of ${budget:.3g}"


def _number(text: str | None) -> float | None:
    """A positive number in a header; None for anything else."""
    if text is None or not re.fullmatch(r"\d{0,9}(\.\d{0,12})?(e-?\d{1,2})?", text.strip() or "x"):
        return None
    try:
        return float(text) or None
    except ValueError:
        return None


def _nearest(similarity: Mapping[str, float], min_margin: float) -> Decision | None:
    (model, best), (_, second) = sorted(similarity.items(), key=lambda one: -one[1])[:2]
    if best - second < min_margin:
        return None
    return Decision(model, f"classifier: similarity {best:.2f}, ahead by {best - second:.2f}")


_CODE = re.compile(
    r"```"
    r"|^\s*(?:def|class)\s+\w+.*:\s*$"  # Python
    r"|^\s*(?:from\s+[\w.]+\s+)?import\s+[\w.*{]+"
    r"|^\s*#include\s*[<\"]"
    r"|^\s*(?:public|private|static|func|fn|function|const|let|var)\s+\w+.*[{;=(]"
    r"|^\s*(?:SELECT\s.+\sFROM|INSERT\s+INTO|CREATE\s+TABLE)\s"
    r"|^\s*(?:if|for|while)\s*\(.*\)\s*\{"
    r"|[\w\])]\s*=>\s*[\w({]|;\s*$\s*\}",
    re.MULTILINE,
)


def holds_code(text: str) -> bool:
    """Whether a text holds program code: a fenced block, or a line that begins as code does."""
    return _CODE.search(text) is not None


_SCRIPTS = {
    "ja": r"[\u3040-\u30ff]",
    "ko": r"[\uac00-\ud7af]",
    "zh": r"[\u4e00-\u9fff]",
    "ru": r"[\u0400-\u04ff]",
    "el": r"[\u0370-\u03ff]",
    "ar": r"[\u0600-\u06ff]",
    "he": r"[\u0590-\u05ff]",
    "hi": r"[\u0900-\u097f]",
    "th": r"[\u0e00-\u0e7f]",
}
"""Languages told by their script alone; Japanese before Chinese, whose characters it uses too."""
_LATIN = ("en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "pl", "tr")


def language(text: str) -> str | None:
    """A text's language (ISO 639-1), by its script or its commonest words; None if neither tells.

    The commonest words are spaCy's stop words, which come with it and need no model.
    """
    for name, script in _SCRIPTS.items():
        if len(re.findall(script, text)) > 0.1 * len(text):
            return name
    words = re.findall(r"[^\W\d_]+", text.lower())
    known = _stop_words()
    counts = {name: sum(word in known[name] for word in words) for name in known}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else None


@cache
def _stop_words() -> dict[str, frozenset[str]]:
    """Each language's stop words, read without importing spaCy itself (seconds of a core)."""
    import ast
    from importlib.util import find_spec
    from pathlib import Path

    package = find_spec("spacy")
    if package is None or package.origin is None:
        return {"en": frozenset({"the", "of", "and", "to", "a", "is", "what", "how"})}
    found = {}
    for name in _LATIN:
        source = Path(package.origin).parent / "lang" / name / "stop_words.py"
        texts = [
            node.value
            for node in ast.walk(ast.parse(source.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        found[name] = frozenset(word for text in texts for word in text.split())
    return found
