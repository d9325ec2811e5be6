"""Prompt sets as data: strict, frozen, described. `workbench.workload.prompt_generator` makes
prompts of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from serving.errors import SpecError
from serving.spec.base import Strict

if TYPE_CHECKING:
    import numpy as np

MAX_TOKENS = 10_000_000

Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
TokensOrZero = Annotated[int, Field(ge=0, le=MAX_TOKENS)]


class Fixed(Strict):
    """Always the same length. A plain int stands for it."""

    kind: Literal["fixed"] = Field("fixed", description="Always the same.")
    tokens: Tokens = Field(description="Tokens.")

    @property
    def low(self) -> int:
        return self.tokens

    @property
    def high(self) -> int:
        return self.tokens

    def draw(self, rng: np.random.Generator) -> int:
        return self.tokens


class Uniform(Strict):
    """Every length from `low` to `high`, both included, equally often."""

    kind: Literal["uniform"] = Field("uniform", description="Each equally often.")
    low: Tokens = Field(description="Fewest tokens.")
    high: Tokens = Field(description="Most tokens.")

    def draw(self, rng: np.random.Generator) -> int:
        return int(rng.integers(self.low, self.high, endpoint=True))

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.high < self.low:
            raise ValueError(f"Uniform.high = {self.high} is below low = {self.low}; swap them")
        return self


class LogNormal(Strict):
    """`median` × exp(`sigma` × a standard normal), rounded; beyond the bounds, the bound."""

    kind: Literal["lognormal"] = Field("lognormal", description="Many short ones, a few long.")
    median: float = Field(ge=1, le=MAX_TOKENS, description="Half are longer.")
    sigma: float = Field(ge=0, le=10, description="Standard deviation of the logarithm.")
    low: Tokens = Field(1, description="Fewest tokens.")
    high: Tokens = Field(description="Most tokens.")

    def draw(self, rng: np.random.Generator) -> int:
        tokens = self.median * float(rng.lognormal(0, self.sigma))
        return round(min(max(tokens, self.low), self.high))

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low <= self.median <= self.high:
            raise ValueError(
                f"LogNormal.median = {self.median:g} lies outside low..high = "
                f"{self.low}..{self.high}; move a bound"
            )
        return self


class FromTrace(Strict):
    """As in the replayed trace: the first request has the first one's count, and so on."""

    kind: Literal["trace"] = Field("trace", description="As recorded.")


def _as_length(
    given: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo
) -> Fixed | Uniform | LogNormal | FromTrace:
    try:
        made: Fixed | Uniform | LogNormal | FromTrace = validate(
            {"kind": "fixed", "tokens": given} if type(given) is int else given
        )
    except (SpecError, ValidationError) as problem:
        why = str(problem) if isinstance(problem, SpecError) else problem.errors()[0]["msg"]
        # Of a dict, the message would not say where it stands.
        raise ValueError(f"{info.field_name}: {why}" if isinstance(given, dict) else why) from None
    return made


Drawn = Annotated[
    Fixed | Uniform | LogNormal, Field(discriminator="kind"), WrapValidator(_as_length)
]
"""A length that stands for itself."""
Length = Annotated[
    Fixed | Uniform | LogNormal | FromTrace, Field(discriminator="kind"), WrapValidator(_as_length)
]


class RandomPrompts(Strict):
    """Ids of ordinary tokens, drawn at random, each prompt for itself.

    The prefixes are drawn first, and a prompt starts with one of them, each equally often.
    """

    kind: Literal["random"] = Field("random", description="Ids drawn at random.")
    input: Length = Field(description="Tokens of a prompt, the prefix included.")
    output: Length = Field(description="Tokens to ask for.")
    shared_prefix_tokens: TokensOrZero = Field(0, description="Tokens of a shared prefix.")
    prefixes: int = Field(1, ge=1, le=100_000, description="Different prefixes.")

    @model_validator(mode="after")
    def _prefix_fits(self) -> Self:
        if not isinstance(self.input, FromTrace) and (why := self.no_room(self.input.low)):
            raise ValueError(why)
        return self

    def no_room(self, tokens: int) -> str | None:
        """What is wrong with a prompt of so many tokens, if the prefix is longer."""
        if tokens >= self.shared_prefix_tokens:
            return None
        return (
            f"RandomPrompts.input = {tokens} is below shared_prefix_tokens = "
            f"{self.shared_prefix_tokens}; raise the one or lower the other"
        )


class Conversations(Strict):
    """Chats of `turns` turns as token ids, each turn sent with all that was said before.

    A turn's prompt is the system part (one for all conversations), every earlier user part, each
    with its answer, and the new user part. The answers in it are drawn ids too, as many as were
    asked for, and not what the model said: so a prompt is the same bytes in every repeat, whatever
    the model answers. A prefix cache finds the whole prompt of the turn before, but not its answer.
    """

    kind: Literal["conversations"] = Field("conversations", description="Chats of several turns.")
    turns: int = Field(ge=1, le=10_000, description="Requests of a conversation.")
    input: Drawn = Field(description="Tokens of a user's part.")
    output: Drawn = Field(description="Tokens to ask for.")
    system_tokens: TokensOrZero = Field(0, description="Tokens that all conversations start with.")
    think_s: float = Field(0, ge=0, description="Mean wait before a next turn; exponential.")


class FilePrompts(Strict):
    """The lines of a JSONL file in their order, from the first again when all were taken.

    A line has either `prompt`, a text, or `messages`, objects of strings with `role` and
    `content`. Its `output_tokens` is what is asked for; `output` is for lines without. Other
    fields are not read.
    """

    kind: Literal["file"] = Field("file", description="Lines of a JSONL file.")
    path: str = Field(min_length=1, description="The file.")
    output: Length | None = Field(None, description="Tokens to ask for where a line does not say.")


PromptSet = Annotated[RandomPrompts | Conversations | FilePrompts, Field(discriminator="kind")]
