"""The model router: which model answers a request for ``auto``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from serving.spec.base import Strict

AUTO = "auto"
"""The model name in a request that leaves the choice to the router."""


class _Rule(Strict):
    """A condition and the model that answers when it holds. The first rule that holds decides."""

    model: str = Field(min_length=1, description="Id of the model that answers.")


class LengthRule(_Rule):
    """Match by the length of the request's text."""

    kind: Literal["length"] = Field("length", description="The kind of rule.")
    min_chars: int = Field(
        0, ge=0, description="Minimum number of characters of all messages together."
    )
    max_chars: int | None = Field(
        None,
        ge=0,
        description="Maximum number of characters of all messages together; default: no limit.",
    )


class CodeRule(_Rule):
    """Match requests with program code: a fenced block, or lines that look like code."""

    kind: Literal["code"] = Field("code", description="The kind of rule.")


class LanguageRule(_Rule):
    """Match by the language of the last message, detected from its script and common words."""

    kind: Literal["language"] = Field("language", description="The kind of rule.")
    languages: tuple[str, ...] = Field(
        min_length=1, description="Languages to match, as ISO 639-1 codes such as en, de or zh."
    )


class TenantRule(_Rule):
    """Match by the tenant that sent the request."""

    kind: Literal["tenant"] = Field("tenant", description="The kind of rule.")
    tenants: tuple[str, ...] = Field(min_length=1, description="Names of the tenants to match.")


class BudgetRule(Strict):
    """Choose the first model, in the pipeline's order, that fits the request's budget.

    The cost of a request is estimated before it runs: prompt tokens (a quarter of the characters)
    plus ``max_tokens``, times the model's price. The request header ``x-budget-usd`` has the
    budget. If every model costs more, the cheapest answers.
    """

    kind: Literal["budget"] = Field("budget", description="The kind of rule.")
    usd_per_million_tokens: dict[str, float] = Field(
        min_length=1, description="Price in USD per million tokens, by model id."
    )
    usd_per_request: float | None = Field(
        None,
        gt=0,
        description="Budget in USD of a request without the header; default: the rule is skipped.",
    )
    default_max_tokens: int = Field(
        256, ge=1, description="Answer tokens assumed for a request without max_tokens."
    )


RouteRule = Annotated[
    LengthRule | CodeRule | LanguageRule | TenantRule | BudgetRule, Field(discriminator="kind")
]


class EmbeddingClassifier(Strict):
    """Choose the model whose examples are nearest, by sentence embeddings of a local model."""

    path: str = Field(
        min_length=1, description="Folder or Hugging Face id of the sentence embedding model."
    )
    examples: dict[str, tuple[str, ...]] = Field(
        min_length=2,
        description="Example requests for each model, by model id; at least two models.",
    )
    min_margin: float = Field(
        0.0,
        ge=0,
        le=2,
        description="Minimum lead of the nearest model in cosine similarity, 0 to 2; with less, "
        "the default model answers.",
    )
    max_tokens: int = Field(
        256,
        ge=8,
        le=8192,
        description="Maximum number of tokens of a text that are embedded, 8 to 8192.",
    )


class RouterSpec(Strict):
    """The router for ``auto``: the first matching rule, then the classifier, then the default."""

    rules: tuple[RouteRule, ...] = Field((), description="Rules, in the order they are tried.")
    classifier: EmbeddingClassifier | None = Field(
        None, description="Classifier for requests that no rule matches; default: none."
    )
    default: str | None = Field(
        None, description="Id of the model for all other requests; default: the first model."
    )
    fallback: bool = Field(
        True, description="Whether another model answers when the chosen one is down or saturated."
    )
    num_cpus: float = Field(0.5, ge=0, description="CPUs of each router replica.")
    replicas: int = Field(1, ge=1, le=64, description="Router replicas, 1 to 64.")

    def model_ids(self) -> set[str]:
        """Return the ids of all models that the rules, the classifier and the default name."""
        ids = {rule.model for rule in self.rules if not isinstance(rule, BudgetRule)}
        for rule in self.rules:
            if isinstance(rule, BudgetRule):
                ids |= set(rule.usd_per_million_tokens)
        ids |= set(self.classifier.examples) if self.classifier else set()
        return ids | ({self.default} if self.default else set())
