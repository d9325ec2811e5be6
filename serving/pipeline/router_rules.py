"""Which model answers, by rule: pure functions of what the model router knows of a request."""

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

Similarity = Callable[[str], Mapping[str, float]]
"""A classifier: returns the similarity of a text to each model's examples."""


class RoutingInput(NamedTuple):
    """The properties of a request that the model router uses.

    Attributes:
        texts: The text of every message or prompt, the last one last.
        max_tokens: The request's own limit on the answer.
        tenant: Name of the tenant who is calling.
        budget: Content of the request's budget header.
    """

    texts: tuple[str, ...]
    max_tokens: int | None
    tenant: str | None
    budget: str | None

    @property
    def chars(self) -> int:
        """Characters of all texts."""
        return sum(map(len, self.texts))


class Decision(NamedTuple):
    """The model that should answer, and why; the reason contains no text of the request."""

    model: str
    reason: str


def decide(
    request: RoutingInput,
    spec: RouterSpec,
    models: tuple[str, ...],
    similarity: Similarity | None = None,
) -> Decision:
    """Decide by the first rule that applies, then the classifier, then the default.

    Args:
        request: The request.
        spec: Rules, classifier and default.
        models: Ids of the pipeline's models, in its order.
        similarity: The classifier, if there is one.
    """
    for number, rule in enumerate(spec.rules, 1):
        if isinstance(rule, BudgetRule):
            choice = _affordable(rule, request, models)
        else:
            reason = _reason(rule, request)
            choice = None if reason is None else (rule.model, reason)
        if choice is not None:
            return Decision(choice[0], f"rule {number}: {choice[1]}")
    if similarity is not None and spec.classifier is not None:
        decision = _nearest(similarity("\n".join(request.texts)), spec.classifier.min_margin)
        if decision is not None:
            return decision
    return Decision(spec.default or models[0], "default")


def _reason(
    rule: LengthRule | CodeRule | LanguageRule | TenantRule, request: RoutingInput
) -> str | None:
    """Return why a rule applies; None if it does not."""
    match rule:
        case LengthRule():
            too_long = rule.max_chars is not None and request.chars > rule.max_chars
            too_short = request.chars < rule.min_chars
            return None if too_long or too_short else f"{request.chars} characters"
        case CodeRule():
            return "the request contains code" if any(map(contains_code, request.texts)) else None
        case LanguageRule():
            name = language(request.texts[-1] if request.texts else "")
            return f"the language is {name}" if name in rule.languages else None
        case TenantRule():
            return f"the tenant is {request.tenant}" if request.tenant in rule.tenants else None


def _affordable(
    rule: BudgetRule, request: RoutingInput, models: Iterable[str]
) -> tuple[str, str] | None:
    """Return the first model within the budget, else the cheapest, and the reason."""
    budget = _parse_amount(request.budget) or rule.usd_per_request
    if budget is None:
        return None
    tokens = request.chars / CHARS_PER_TOKEN + (request.max_tokens or rule.default_max_tokens)
    prices = rule.usd_per_million_tokens
    costs = {model: tokens * prices[model] / 1e6 for model in models if model in prices}
    within = [model for model, cost in costs.items() if cost <= budget]
    model = within[0] if within else min(costs, key=costs.__getitem__)
    relation = "within" if within else "the cheapest, above"
    return model, f"${costs[model]:.3g} is {relation} the budget of ${budget:.3g}"


def _parse_amount(text: str | None) -> float | None:
    """Parse a positive number in a header; None for anything else."""
    if text is None or not re.fullmatch(r"\d{0,9}(\.\d{0,12})?(e-?\d{1,2})?", text.strip() or "x"):
        return None
    try:
        return float(text) or None
    except ValueError:
        return None


def _nearest(similarities: Mapping[str, float], min_margin: float) -> Decision | None:
    ranked = sorted(similarities.items(), key=lambda item: -item[1])
    (model, best), (_, second) = ranked[:2]
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


def contains_code(text: str) -> bool:
    """Return whether a text has program code: a fenced block, or a line that looks like code."""
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
"""Languages known by their script; Japanese before Chinese, whose characters it uses too."""
_LATIN = ("en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "pl", "tr")


def language(text: str) -> str | None:
    """Return a text's language (ISO 639-1), by its script or its most common words.

    The most common words are spaCy's stop words, which are installed with it and need no model.

    Returns:
        The language; None if neither shows it.
    """
    for name, script in _SCRIPTS.items():
        if len(re.findall(script, text)) > 0.1 * len(text):
            return name
    words = re.findall(r"[^\W\d_]+", text.lower())
    stop_words = _stop_words()
    counts = {name: sum(word in stop_words[name] for word in words) for name in stop_words}
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else None


@cache
def _stop_words() -> dict[str, frozenset[str]]:
    """Return each language's stop words, read without importing spaCy, which takes seconds."""
    import ast
    from importlib.util import find_spec
    from pathlib import Path

    package = find_spec("spacy")
    if package is None or package.origin is None:
        return {"en": frozenset({"the", "of", "and", "to", "a", "is", "what", "how"})}
    stop_words = {}
    for name in _LATIN:
        source = Path(package.origin).parent / "lang" / name / "stop_words.py"
        strings = [
            node.value
            for node in ast.walk(ast.parse(source.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        stop_words[name] = frozenset(word for string in strings for word in string.split())
    return stop_words
