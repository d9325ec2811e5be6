"""The router as data: which model answers a request for ``auto``, by rules or by a classifier."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from serving.spec.base import Strict

AUTO = "auto"
"""The model's name in a request that leaves the choice to the router."""


class _Rule(Strict):
    """A rule names the model that answers where it holds; the first that holds decides."""

    model: str = Field(min_length=1, description="The id of the model that answers.")


class LengthRule(_Rule):
    """By the length of the request's text."""

    kind: Literal["length"] = Field("length", description="Which kind of rule this is.")
    min_chars: int = Field(0, ge=0, description="Fewest characters of all messages together.")
    max_chars: int | None = Field(
        None, ge=0, description="Most characters of all messages together; any when absent."
    )


class CodeRule(_Rule):
    """For a request that holds program code: a fenced block, or lines that look like code."""

    kind: Literal["code"] = Field("code", description="Which kind of rule this is.")


class LanguageRule(_Rule):
    """By the language of the last message, told by its script and its commonest words."""

    kind: Literal["language"] = Field("language", description="Which kind of rule this is.")
    languages: tuple[str, ...] = Field(
        min_length=1, description="Languages (ISO 639-1, as en, de, zh) that it holds for."
    )


class TenantRule(_Rule):
    """By who asks."""

    kind: Literal["tenant"] = Field("tenant", description="Which kind of rule this is.")
    tenants: tuple[str, ...] = Field(min_length=1, description="Tenants that it holds for.")


class BudgetRule(Strict):
    """The first model, in the pipeline's order, whose answer the request can pay for.

    A request's cost is estimated before it runs: its prompt's tokens (a quarter of its characters)
    and its ``max_tokens``, times the model's price. Its budget stands in the request header
    ``x-budget-usd``. Where even the cheapest costs more, the cheapest answers.
    """

    kind: Literal["budget"] = Field("budget", description="Which kind of rule this is.")
    usd_per_million_tokens: dict[str, float] = Field(
        min_length=1, description="Price by model id, in $ per million tokens."
    )
    usd_per_request: float | None = Field(
        None, gt=0, description="Budget of a request without a header; no rule when absent."
    )
    default_max_tokens: int = Field(
        256, ge=1, description="Tokens of an answer where the request does not say."
    )


RouteRule = Annotated[
    LengthRule | CodeRule | LanguageRule | TenantRule | BudgetRule, Field(discriminator="kind")
]


class EmbeddingClassifier(Strict):
    """Nearest examples: sentence embeddings of a local model, one mean vector a served model."""

    path: str = Field(min_length=1, description="Folder or Hugging Face id of the embedding model.")
    examples: dict[str, tuple[str, ...]] = Field(
        min_length=2, description="By model id, texts of the kind that it should answer."
    )
    min_margin: float = Field(
        0.0, ge=0, le=2, description="Least lead in cosine similarity; less leaves it undecided."
    )
    max_tokens: int = Field(256, ge=8, le=8192, description="Tokens of a text that are read.")


class RouterSpec(Strict):
    """Who answers ``auto``: the first rule that holds, then the classifier, then the default."""

    rules: tuple[RouteRule, ...] = Field((), description="Rules, in the order they are tried.")
    classifier: EmbeddingClassifier | None = Field(
        None, description="What decides where no rule does."
    )
    default: str | None = Field(
        None, description="The model that answers otherwise; the first when absent."
    )
    fallback: bool = Field(
        True, description="Whether another model answers for one that is down or saturated."
    )
    num_cpus: float = Field(0.5, ge=0, description="CPUs of each replica.")
    replicas: int = Field(1, ge=1, le=64, description="Replicas of the router.")

    def named(self) -> set[str]:
        """The ids of all models that rules, classifier and default name."""
        ids = {rule.model for rule in self.rules if not isinstance(rule, BudgetRule)}
        for rule in self.rules:
            if isinstance(rule, BudgetRule):
                ids |= set(rule.usd_per_million_tokens)
        ids |= set(self.classifier.examples) if self.classifier else set()
        return ids | ({self.default} if self.default else set())
