"""The guardrail as data: what it looks for, on which side, and what it does with what it finds."""

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
"""From what a guardrail does least about to what it does most about."""


class EntityRule(Strict):
    """What to do about one type of entity, where that differs from the guardrail's own rule."""

    entity: str = Field(
        pattern=r"^[A-Z0-9_]+$", description="The type as Presidio names it, as EMAIL_ADDRESS."
    )
    action: Action = Field(
        "redact", description="block, redact, annotate (only tell in a header), or allow."
    )
    min_score: float = Field(
        0.4, ge=0, le=1, description="Least confidence of a find, 0 to 1, that counts."
    )


class _Guard(Strict):
    """What every kind of guardrail has."""

    sides: tuple[Side, ...] = Field(
        ("prompt", "answer"), min_length=1, description="What is looked at."
    )
    hold_back_chars: int = Field(
        48,
        ge=16,
        le=4096,
        description="Characters of a streamed answer held until what follows them is known; "
        "nothing this long or shorter slips through in parts. A word is never cut.",
    )
    step_chars: int = Field(
        96,
        ge=1,
        le=4096,
        description="New characters of a streamed answer that are looked at together, at most.",
    )


class PresidioGuardrail(_Guard):
    """Personal data found by Presidio, in a deployment of its own."""

    kind: Literal["presidio"] = Field("presidio", description="Which kind of guardrail this is.")
    action: Action = Field("redact", description="What to do about a type without a rule.")
    min_score: float = Field(
        0.4, ge=0, le=1, description="Least confidence of a find for a type without a rule."
    )
    rules: tuple[EntityRule, ...] = Field((), description="What differs by type of entity.")
    entities: tuple[str, ...] | None = Field(
        None, description="The only types to look for; every type known when absent."
    )
    languages: tuple[str, ...] = Field(
        ("en",), min_length=1, description="Languages (ISO 639-1) that texts are looked at in."
    )
    nlp_models: dict[str, str] = Field(
        default_factory=dict,
        description="By language, the spaCy package or folder that finds names and places; "
        "without one, patterns alone are looked for.",
    )
    recognizers: str = Field(
        "",
        description="Further recognizers in Presidio's own YAML, or the path of a .yaml file.",
    )
    num_cpus: float = Field(1, ge=0, description="CPUs of each replica.")
    scaling: ScalingSpec = Field(
        default_factory=lambda: ScalingSpec(max_ongoing_requests=256, target_ongoing_requests=16),
        description="How many replicas, and when.",
    )

    @field_validator("recognizers", mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        """A file is read here, so that its text travels to the cluster and shows in the spec."""
        if isinstance(given, str | Path) and re.fullmatch(r"\S+\.ya?ml", str(given)):
            try:
                return Path(given).expanduser().read_text()
            except OSError as error:
                raise ValueError(f"cannot be read ({error.strerror}); give a file's path") from None
        return given

    @field_validator("recognizers")
    @classmethod
    def _recognizers_are_yaml(cls, given: str) -> str:
        try:
            told = yaml.safe_load(given)
        except yaml.YAMLError as error:
            raise ValueError(f"is not YAML: {error}") from None
        if told is not None and not (
            isinstance(told, dict) and isinstance(told.get("recognizers"), list)
        ):
            raise ValueError("needs the key 'recognizers' with a list, as Presidio's YAML has it")
        return given

    @model_validator(mode="after")
    def _languages_agree(self) -> Self:
        unknown = set(self.nlp_models) - set(self.languages)
        if unknown:
            raise ValueError(
                f"nlp_models names {', '.join(sorted(unknown))}, which languages = "
                f"{self.languages} does not have; add it there, or drop it here"
            )
        return self

    def rule(self, entity: str) -> EntityRule:
        """The rule for a type of entity: its own, or the guardrail's."""
        own = {rule.entity: rule for rule in self.rules}
        return own.get(entity) or EntityRule(
            entity=entity, action=self.action, min_score=self.min_score
        )


class GuardAnswerFormat(Strict):
    """How a guard model's answer is read. The default is Llama Guard's: ``unsafe`` and ``S1,S7``.

    An answer that says neither blocks, since a guard that cannot be understood guards nothing.
    """

    safe: str = Field(r"^\s*safe\b", description="Regular expression of an answer that passes.")
    unsafe: str = Field(
        r"^\s*unsafe\b", description="Regular expression of an answer that does not."
    )
    categories: str = Field(
        r"\bS\d{1,2}\b", description="Regular expression of the categories in such an answer."
    )
    unclear: Literal["block", "allow"] = Field(
        "block", description="What an answer that is neither means."
    )

    @field_validator("safe", "unsafe", "categories")
    @classmethod
    def _is_a_pattern(cls, given: str) -> str:
        try:
            re.compile(given)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return given


class _Judge(_Guard):
    """What both kinds of guard model have: how they are asked, and how their answer is read."""

    template: str | None = Field(
        None,
        description="The classifier's prompt, with {text} and {role} (user or assistant) in it; "
        "without one the text is sent as a chat, for the model's own template to wrap.",
    )
    max_tokens: int = Field(16, ge=1, le=256, description="Most tokens of the guard's answer.")
    verdict: GuardAnswerFormat = Field(
        default_factory=GuardAnswerFormat, description="How its answer is read."
    )
    action: Literal["block", "annotate"] = Field(
        "block", description="What to do about what it calls unsafe."
    )
    timeout_s: float = Field(
        30, gt=0, description="Seconds for its answer; none in time counts as unclear."
    )
    hold_back_chars: int = Field(
        400, ge=16, le=16384, description="Characters of a streamed answer held until judged."
    )
    step_chars: int = Field(
        400, ge=1, le=16384, description="New characters of a streamed answer judged together."
    )

    @field_validator("template")
    @classmethod
    def _has_its_place(cls, given: str | None) -> str | None:
        if given is not None and "{text}" not in given:
            raise ValueError("needs {text} where the text to judge goes")
        return given


class GuardModel(_Judge):
    """A classifier such as Llama Guard, served by vLLM in a deployment of its own."""

    kind: Literal["model"] = Field("model", description="Which kind of guardrail this is.")
    model: ModelSpec = Field(description="The guard model; its id may not be a served one's.")


class GuardEndpoint(_Judge):
    """A classifier that another OpenAI-compatible endpoint serves."""

    kind: Literal["endpoint"] = Field("endpoint", description="Which kind of guardrail this is.")
    base_url: str = Field(pattern=r"^https?://", description="Its address, with /v1.")
    model_id: str = Field(min_length=1, description="The model's name there.")
    key_variable: str | None = Field(
        None,
        pattern=r"^[A-Z][A-Z0-9_]*$",
        description="Environment variable of the cluster's nodes that holds its API key.",
    )


GuardrailSpec = Annotated[
    PresidioGuardrail | GuardModel | GuardEndpoint, Field(discriminator="kind")
]
