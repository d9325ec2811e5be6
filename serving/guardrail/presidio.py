"""Personal data, found by Presidio without any download: patterns always, names with a model.

Import this only where it runs: Presidio and spaCy take seconds to import.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from serving.errors import MissingPackageError, SpecError
from serving.guardrail.findings import Finding, merge_overlaps
from serving.guardrail.normalize import normalize
from serving.spec.guardrail import PresidioGuardrail

if TYPE_CHECKING:
    from collections.abc import Callable

    from presidio_analyzer import AnalyzerEngine, EntityRecognizer, RecognizerResult
    from presidio_analyzer.nlp_engine import NlpArtifacts, NlpEngine

DEFAULT_ENTITIES = (
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
"""Searched for when the spec names no types, besides those of its own recognizers.

Presidio knows more, but it finds dates and license numbers in too much that is not personal data.
"""
CONTEXT_WORDS_AFTER = 3
"""Words after a number that may say what it is, besides Presidio's five before it."""
NLP_ENTITIES = frozenset({"PERSON", "LOCATION", "NRP", "ORGANIZATION"})
"""Types that only an NLP model finds."""


class Detector:
    """Finds what a guardrail searches for. Creating one loads the NLP models, if any.

    Raises:
        SpecError: A recognizer is invalid, or spaCy cannot load an NLP model.
        MissingPackageError: Presidio is not installed.
    """

    def __init__(self, spec: PresidioGuardrail) -> None:
        self._spec = spec
        self._analyzer = _analyzer(spec)
        self._entities = {language: self._searched(language) for language in spec.languages}

    def find(self, text: str) -> list[Finding]:
        """Return the findings to which the spec's rules apply, in all languages, merged.

        The text is normalized first; the findings' positions are those in ``text``.
        """
        plain = normalize(text)
        return merge_overlaps(
            Finding(
                plain.start(result.start),
                plain.end(result.end),
                result.entity_type,
                result.score,
                rule.action,
            )
            for language, entities in self._entities.items()
            if entities
            for result in self._analyze(plain.text, language, entities)
            if (rule := self._spec.rule(result.entity_type)).action != "allow"
            and result.score >= rule.min_score
        )

    def _analyze(self, text: str, language: str, entities: list[str]) -> list[RecognizerResult]:
        artifacts: Any = _LazyArtifacts(
            lambda: self._analyzer.nlp_engine.process_text(text, language)
        )
        return self._analyzer.analyze(text, language, entities=entities, nlp_artifacts=artifacts)

    def _searched(self, language: str) -> list[str]:
        """Return the entity types to search for in a language."""
        supported = set(self._analyzer.get_supported_entities(language))
        custom = _custom_entities(self._spec)
        if language not in self._spec.nlp_models:
            supported -= NLP_ENTITIES - set(custom)
        entities = self._spec.entities
        if entities is None:
            entities = (*DEFAULT_ENTITIES, *(rule.entity for rule in self._spec.rules), *custom)
        return sorted(supported & set(entities))


class _LazyArtifacts:
    """Presidio's tokens and lemmas of a text, computed when a recognizer or context needs them."""

    def __init__(self, compute: Callable[[], NlpArtifacts]) -> None:
        self._compute = compute

    def __getattr__(self, name: str) -> Any:
        artifacts = self._compute()
        self.__dict__.update(artifacts.__dict__)
        return getattr(artifacts, name)


def check_recognizers(spec: PresidioGuardrail) -> None:
    """Check that Presidio accepts the spec's recognizers.

    Raises:
        SpecError: A recognizer is invalid.
    """
    for language in spec.languages:
        _custom_recognizers(spec, language)


def _custom_entities(spec: PresidioGuardrail) -> list[str]:
    """Return the entity types that the spec's own recognizers find."""
    by_entry = [
        entry.get("supported_entities") or [entry.get("supported_entity")]
        for entry in _recognizer_entries(spec)
    ]
    return sorted({str(entity) for entities in by_entry for entity in entities})


def _recognizer_entries(spec: PresidioGuardrail) -> list[dict[str, Any]]:
    content = yaml.safe_load(spec.recognizers) or {}
    return list(content.get("recognizers", ()))


def _custom_recognizers(spec: PresidioGuardrail, language: str) -> list[EntityRecognizer]:
    """Return the spec's recognizers that name this language, and those that name none."""
    recognizers = []
    for entry in _recognizer_entries(spec):
        try:
            if entry.get("supported_language", language) == language:
                recognizers.append(_pattern_recognizer({"supported_language": language} | entry))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            name = entry.get("name", "?") if isinstance(entry, dict) else entry
            raise SpecError(
                f"guardrail.recognizers: {name!r} is not a valid Presidio recognizer "
                f"({type(error).__name__}: {error}). It needs name, supported_entity, and patterns "
                "(each with name, regex, score) or deny_list."
            ) from None
    return recognizers


def _pattern_recognizer(entry: dict[str, Any]) -> EntityRecognizer:
    pattern_recognizer = _import("presidio_analyzer").PatternRecognizer
    for pattern in entry.get("patterns") or ():
        try:
            re.compile(pattern["regex"])
        except re.error as error:
            raise ValueError(f"{pattern['regex']!r} is not a regular expression: {error}") from None
    recognizer: EntityRecognizer = pattern_recognizer.from_dict(entry)
    return recognizer


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
    nlp_engine = _nlp_engine(spec)
    registry = presidio.RecognizerRegistry(supported_languages=languages)
    registry.load_predefined_recognizers(languages=languages, nlp_engine=nlp_engine)
    recognizers = _import("serving.guardrail.recognizers")
    registry.recognizers = [
        replacement
        for recognizer in registry.recognizers
        for replacement in recognizers.replacements(recognizer, spec)
    ]
    for language in languages:
        for recognizer in _custom_recognizers(spec, language):
            registry.add_recognizer(recognizer)
    enhancer = _import("presidio_analyzer.context_aware_enhancers").LemmaContextAwareEnhancer(
        context_suffix_count=CONTEXT_WORDS_AFTER, context_matching_mode="whole_word"
    )
    analyzer: AnalyzerEngine = presidio.AnalyzerEngine(
        registry=registry,
        nlp_engine=nlp_engine,
        supported_languages=languages,
        context_aware_enhancer=enhancer,
    )
    return analyzer


def _nlp_engine(spec: PresidioGuardrail) -> NlpEngine:
    """Return Presidio's engine; a language without a model gets a blank tokenizer, no download."""
    models = [
        {"lang_code": language, "model_name": spec.nlp_models.get(language, "blank")}
        for language in spec.languages
    ]
    engine = _import("presidio_analyzer.nlp_engine").SpacyNlpEngine(models=models)
    engine.nlp = {
        language: _load_spacy(language, spec.nlp_models.get(language))
        for language in spec.languages
    }
    nlp_engine: NlpEngine = engine
    return nlp_engine


def _load_spacy(language: str, name: str | None) -> Any:
    import spacy

    try:
        pipeline = spacy.load(name) if name else spacy.blank(language)
    except (ImportError, OSError) as error:
        field = f"nlp_models[{language!r}] = {name!r}" if name else f"languages: {language!r}"
        first_line = str(error).strip().splitlines()[0]
        raise SpecError(f"guardrail.{field} cannot be loaded by spaCy: {first_line}") from None
    pipeline.max_length = 2**31  # the endpoint has its own limit on a prompt's length
    _prepare_for_context(pipeline)
    return pipeline


def _prepare_for_context(pipeline: Any) -> None:
    """Let Presidio's context enhancement see every word.

    It compares lemmas, which a pipeline without a lemmatizer does not write, and ignores stop words
    such as "call".
    """
    from spacy.language import Language

    def write_missing_lemmas(doc: Any) -> Any:
        for token in doc:
            if not token.lemma:
                token.lemma_ = token.lower_
        return doc

    Language.component("missing_lemmas", func=write_missing_lemmas)
    pipeline.add_pipe("missing_lemmas", last=True)
    for word in _import("serving.guardrail.recognizers").PHONE_CONTEXT:
        pipeline.vocab[word].is_stop = False


def _stay_offline() -> None:
    """Check e-mail addresses against the installed list of public suffixes, without a download."""
    import tldextract.tldextract as module

    module.TLD_EXTRACTOR = module.TLDExtract(suffix_list_urls=(), cache_dir=None)
