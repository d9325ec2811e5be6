"""Guardrails: the entities to detect, the sides to check, and the actions to take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from serving.spec.base import Strict
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec

Side = Literal["prompt", "answer"]
Action = Literal["block", "redact", "annotate", "allow"]

SEVERITY: tuple[Action, ...] = ("allow", "annotate", "redact", "block")
"""Actions from the least to the most severe."""


class EntityRule(Strict):
    """The action for one entity type, where it differs from the guardrail's own."""

    entity: str = Field(
        pattern=r"^[A-Z0-9_]+$",
        description="Entity type by Presidio's name, such as EMAIL_ADDRESS.",
    )
    action: Action = Field(
        "redact", description="block, redact, annotate (report in a header only), or allow."
    )
    min_score: float = Field(
        0.4, ge=0, le=1, description="Minimum confidence, 0 to 1, of a finding that counts."
    )


class _Guardrail(Strict):
    """Fields of every kind of guardrail."""

    sides: tuple[Side, ...] = Field(
        ("prompt", "answer"), min_length=1, description="Which texts are checked."
    )
    hold_back_chars: int = Field(
        48,
        ge=16,
        le=4096,
        description="Characters at the end of a streamed answer that are held back until the next "
        "ones arrive, 16 to 4096. An entity up to this length cannot leave in parts. Words are "
        "never split.",
    )
    step_chars: int = Field(
        96,
        ge=1,
        le=4096,
        description="Maximum number of new characters of a streamed answer that are checked at "
        "once, 1 to 4096.",
    )


class PresidioGuardrail(_Guardrail):
    """Detect personal data with Presidio, in a separate deployment."""

    kind: Literal["presidio"] = Field("presidio", description="The kind of guardrail.")
    action: Action = Field("redact", description="Action for entity types without a rule.")
    min_score: float = Field(
        0.4, ge=0, le=1, description="Minimum confidence, 0 to 1, for entity types without a rule."
    )
    rules: tuple[EntityRule, ...] = Field((), description="Rules for single entity types.")
    entities: tuple[str, ...] | None = Field(
        None, description="The only entity types to look for; default: every known type."
    )
    languages: tuple[str, ...] = Field(
        ("en",), min_length=1, description="Languages of the texts, as ISO 639-1 codes."
    )
    phone_regions: tuple[Annotated[str, Field(pattern=r"^[A-Z]{2}$")], ...] = Field(
        ("US", "GB", "DE", "FR", "IL", "IN", "CA", "BR"),
        description="Countries whose phone numbers are recognized without an international "
        "prefix, as ISO 3166 codes.",
    )
    nlp_models: dict[str, str] = Field(
        default_factory=dict,
        description="spaCy package or folder by language, to detect names and places; a language "
        "without one is checked with patterns only.",
    )
    recognizers: str = Field(
        "", description="More recognizers as Presidio YAML, or the path of a .yaml file."
    )
    num_cpus: float = Field(1, ge=0, description="CPUs of each replica.")
    scaling: ScalingSpec = Field(
        default_factory=lambda: ScalingSpec(max_ongoing_requests=256, target_ongoing_requests=16),
        description="Number of replicas and when it changes.",
    )

    @field_validator("recognizers", mode="before")
    @classmethod
    def _read_file(cls, value: Any) -> Any:
        """Read a file here, so that its text is part of the spec and reaches the cluster."""
        if isinstance(value, str | Path) and re.fullmatch(r"\S+\.ya?ml", str(value)):
            try:
                return Path(value).expanduser().read_text()
            except OSError as error:
                raise ValueError(
                    f"must be YAML or a readable file ({error.strerror}); check the path"
                ) from None
        return value

    @field_validator("recognizers")
    @classmethod
    def _check_recognizers(cls, value: str) -> str:
        try:
            document = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"must be YAML ({error})") from None
        if document is not None and not (
            isinstance(document, dict) and isinstance(document.get("recognizers"), list)
        ):
            raise ValueError("must have the key 'recognizers' with a list, as in Presidio's YAML")
        return value

    @model_validator(mode="after")
    def _check_languages(self) -> Self:
        unknown = set(self.nlp_models) - set(self.languages)
        if unknown:
            raise ValueError(
                f"nlp_models must be keyed by languages = {self.languages}, got "
                f"{', '.join(sorted(unknown))}; add the language, or remove the model"
            )
        return self

    def rule(self, entity: str) -> EntityRule:
        """Return the rule for an entity type: its own, or one made from the guardrail's fields."""
        rules = {rule.entity: rule for rule in self.rules}
        return rules.get(entity) or EntityRule(
            entity=entity, action=self.action, min_score=self.min_score
        )


class GuardAnswerFormat(Strict):
    """How to read a guard model's answer. The default is Llama Guard's: ``unsafe`` and ``S1,S7``.

    An answer that matches neither expression is unclear. It blocks by default, because a guard
    whose answers cannot be read does not protect anything.
    """

    safe: str = Field(r"^\s*safe\b", description="Regular expression of an answer for safe text.")
    unsafe: str = Field(
        r"^\s*unsafe\b", description="Regular expression of an answer for unsafe text."
    )
    categories: str = Field(
        r"\bS\d{1,2}\b",
        description="Regular expression of the violated categories in an unsafe answer.",
    )
    unclear: Literal["block", "allow"] = Field(
        "block", description="Action for an answer that is neither safe nor unsafe."
    )

    @field_validator("safe", "unsafe", "categories")
    @classmethod
    def _check_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"must be a regular expression ({error})") from None
        return value


class _GuardModelBase(_Guardrail):
    """Fields of both kinds of guard model: how it is asked, and how its answer is read."""

    template: str | None = Field(
        None,
        description="Prompt for the guard model, with {text} and {role} (user or assistant) in it; "
        "default: the text is sent as a chat message, and the model's chat template applies.",
    )
    max_tokens: int = Field(
        16,
        ge=1,
        le=256,
        description="Maximum number of tokens of the guard model's answer, 1 to 256.",
    )
    verdict: GuardAnswerFormat = Field(
        default_factory=GuardAnswerFormat, description="How the guard model's answer is read."
    )
    action: Literal["block", "annotate"] = Field("block", description="Action for unsafe text.")
    timeout_s: float = Field(
        30, gt=0, description="Seconds to wait for an answer; a late answer counts as unclear."
    )
    hold_back_chars: int = Field(
        400,
        ge=16,
        le=16384,
        description="Characters of a streamed answer that are held back until checked, 16 to "
        "16384.",
    )
    step_chars: int = Field(
        400,
        ge=1,
        le=16384,
        description="New characters of a streamed answer that are checked at once, 1 to 16384.",
    )

    @field_validator("template")
    @classmethod
    def _check_template(cls, value: str | None) -> str | None:
        if value is not None and "{text}" not in value:
            raise ValueError("must contain {text}, the placeholder for the text to check")
        return value


class GuardModel(_GuardModelBase):
    """A guard model such as Llama Guard, served by vLLM in a separate deployment."""

    kind: Literal["model"] = Field("model", description="The kind of guardrail.")
    model: ModelSpec = Field(
        description="The guard model; its id must differ from those of the served models."
    )


class GuardEndpoint(_GuardModelBase):
    """A guard model behind another OpenAI-compatible endpoint."""

    kind: Literal["endpoint"] = Field("endpoint", description="The kind of guardrail.")
    base_url: str = Field(pattern=r"^https?://", description="URL of the endpoint, up to its /v1.")
    model_id: str = Field(min_length=1, description="Id of the guard model at that endpoint.")
    key_variable: str | None = Field(
        None,
        pattern=r"^[A-Z][A-Z0-9_]*$",
        description="Environment variable of the cluster's nodes with the endpoint's API key; "
        "default: no key.",
    )


GuardrailSpec = Annotated[
    PresidioGuardrail | GuardModel | GuardEndpoint, Field(discriminator="kind")
]
