"""Personal data, found by Presidio without any download: patterns always, names with a model.

Imported where it runs: Presidio and spaCy take some seconds to import.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from serving.errors import MissingPackageError, SpecError
from serving.guardrail.findings import Finding, resolve
from serving.spec.guardrail import PresidioGuardrail

if TYPE_CHECKING:
    from presidio_analyzer import AnalyzerEngine, EntityRecognizer
    from presidio_analyzer.nlp_engine import NlpEngine

COMMON = (
    "CREDIT_CARD",
    "CRYPTO",
    "EMAIL_ADDRESS",
    "IBAN_CODE",
    "IP_ADDRESS",
    "LOCATION",
    "PERSON",
    "PHONE_NUMBER",
    "US_SSN",
)
"""Looked for where the spec names no types, beside those of its own recognizers.

Presidio knows more; dates and bare numbers of the license kind are found in too much that is
nobody's.
"""
BY_MODEL = frozenset({"PERSON", "LOCATION", "NRP", "ORGANIZATION"})
"""Types that only an NLP model finds."""


class Detector:
    """Finds what a guardrail looks for. Building it loads the NLP models, if any."""

    def __init__(self, spec: PresidioGuardrail) -> None:
        self._spec = spec
        self._analyzer = _analyzer(spec)
        self._entities = {language: self._wanted(language) for language in spec.languages}

    def find(self, text: str) -> list[Finding]:
        """What the spec's rules act upon in ``text``, in every language, without overlaps."""
        return resolve(
            Finding(result.start, result.end, result.entity_type, result.score, rule.action)
            for language, entities in self._entities.items()
            if entities
            for result in self._analyzer.analyze(text, language, entities=entities)
            if (rule := self._spec.rule(result.entity_type)).action != "allow"
            and result.score >= rule.min_score
        )

    def _wanted(self, language: str) -> list[str]:
        known = set(self._analyzer.get_supported_entities(language))
        if language not in self._spec.nlp_models:
            known -= BY_MODEL - set(own_entities(self._spec))
        asked = self._spec.entities
        if asked is None:
            named = [rule.entity for rule in self._spec.rules]
            asked = (*COMMON, *named, *own_entities(self._spec))
        return sorted(known & set(asked))


def own_entities(spec: PresidioGuardrail) -> list[str]:
    """The types of entity that the spec's own recognizers find."""
    found = [
        entry.get("supported_entities") or [entry.get("supported_entity")]
        for entry in _entries(spec)
    ]
    return sorted({str(entity) for entities in found for entity in entities})


def check(spec: PresidioGuardrail) -> None:
    """Raise :class:`SpecError` for recognizers that Presidio does not take."""
    for language in spec.languages:
        _own(spec, language)


def _entries(spec: PresidioGuardrail) -> list[dict[str, Any]]:
    told = yaml.safe_load(spec.recognizers) or {}
    return list(told.get("recognizers", ()))


def _own(spec: PresidioGuardrail, language: str) -> list[EntityRecognizer]:
    """The spec's own recognizers for a language: those that name it, and those that name none."""
    made = []
    for entry in _entries(spec):
        try:
            if entry.get("supported_language", language) == language:
                made.append(_pattern_recognizer({"supported_language": language} | entry))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            name = entry.get("name", "?") if isinstance(entry, dict) else entry
            raise SpecError(
                f"guardrail.recognizers: {name!r} is no recognizer as Presidio writes it "
                f"({type(error).__name__}: {error}). It needs name, supported_entity, and patterns "
                "(each with name, regex, score) or deny_list."
            ) from None
    return made


def _pattern_recognizer(entry: dict[str, Any]) -> EntityRecognizer:
    pattern_recognizer = _import("presidio_analyzer").PatternRecognizer
    for pattern in entry.get("patterns") or ():
        try:
            re.compile(pattern["regex"])
        except re.error as error:
            raise ValueError(f"{pattern['regex']!r} is no regular expression: {error}") from None
    made: EntityRecognizer = pattern_recognizer.from_dict(entry)
    return made


def _import(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise MissingPackageError(
            f"The package '{name.replace('_', '-')}' is not installed. Install it: make setup"
        ) from None


def _analyzer(spec: PresidioGuardrail) -> AnalyzerEngine:
    presidio = _import("presidio_analyzer")
    _stay_offline()
    languages = list(spec.languages)
    nlp = _nlp_engine(spec)
    registry = presidio.RecognizerRegistry(supported_languages=languages)
    registry.load_predefined_recognizers(languages=languages, nlp_engine=nlp)
    for language in languages:
        for recognizer in _own(spec, language):
            registry.add_recognizer(recognizer)
    made: AnalyzerEngine = presidio.AnalyzerEngine(
        registry=registry, nlp_engine=nlp, supported_languages=languages
    )
    return made


def _nlp_engine(spec: PresidioGuardrail) -> NlpEngine:
    """Presidio's own engine, but what it lacks is a blank tokenizer and never a download."""
    import spacy

    models = [
        {"lang_code": language, "model_name": spec.nlp_models.get(language, "blank")}
        for language in spec.languages
    ]

    def load(language: str) -> Any:
        name = spec.nlp_models.get(language)
        try:
            loaded = spacy.load(name) if name else spacy.blank(language)
            loaded.max_length = 2**31  # the endpoint's own limits say how long a prompt may be
            return loaded
        except (ImportError, OSError) as error:
            field = f"nlp_models[{language!r}] = {name!r}" if name else f"languages: {language!r}"
            first = str(error).strip().splitlines()[0]
            raise SpecError(f"guardrail.{field} cannot be loaded by spaCy: {first}") from None

    engine = _import("presidio_analyzer.nlp_engine").SpacyNlpEngine(models=models)
    engine.nlp = {language: load(language) for language in spec.languages}
    made: NlpEngine = engine
    return made


def _stay_offline() -> None:
    """E-mail addresses are checked against the list of public suffixes that comes installed."""
    import tldextract.tldextract as module

    module.TLD_EXTRACTOR = module.TLDExtract(suffix_list_urls=(), cache_dir=None)
