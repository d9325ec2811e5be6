"""Specifications of prompts. `workbench.workload.prompt_generator` generates prompts from them."""

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
    """Always the same length. A plain int is a shorthand for it."""

    kind: Literal["fixed"] = Field("fixed", description="Always the same length.")
    tokens: Tokens = Field(description="Tokens.")

    @property
    def low(self) -> int:
        """The smallest length."""
        return self.tokens

    @property
    def high(self) -> int:
        """The largest length."""
        return self.tokens

    def draw(self, rng: np.random.Generator) -> int:
        """Return the length."""
        return self.tokens


class Uniform(Strict):
    """Every length from `low` to `high`, both included, with equal probability."""

    kind: Literal["uniform"] = Field("uniform", description="Uniformly distributed.")
    low: Tokens = Field(description="Minimum number of tokens.")
    high: Tokens = Field(description="Maximum number of tokens.")

    def draw(self, rng: np.random.Generator) -> int:
        """Draw a length."""
        return int(rng.integers(self.low, self.high, endpoint=True))

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.high < self.low:
            raise ValueError(f"Uniform.high = {self.high} is below low = {self.low}; swap them")
        return self


class LogNormal(Strict):
    """`median` × exp(`sigma` × a standard normal), rounded and clipped to `low` and `high`."""

    kind: Literal["lognormal"] = Field("lognormal", description="Many short, a few long.")
    median: float = Field(ge=1, le=MAX_TOKENS, description="Median number of tokens.")
    sigma: float = Field(ge=0, le=10, description="Standard deviation of the logarithm.")
    low: Tokens = Field(1, description="Minimum number of tokens.")
    high: Tokens = Field(description="Maximum number of tokens.")

    def draw(self, rng: np.random.Generator) -> int:
        """Draw a length."""
        tokens = self.median * float(rng.lognormal(0, self.sigma))
        return round(min(max(tokens, self.low), self.high))

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low <= self.median <= self.high:
            raise ValueError(
                f"LogNormal.median = {self.median:g} is outside low..high = "
                f"{self.low}..{self.high}; move a bound"
            )
        return self


class FromTrace(Strict):
    """The lengths of the replayed trace: each request has its own."""

    kind: Literal["trace"] = Field("trace", description="As recorded.")


def _as_length(
    value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo
) -> Fixed | Uniform | LogNormal | FromTrace:
    try:
        length: Fixed | Uniform | LogNormal | FromTrace = validate(
            {"kind": "fixed", "tokens": value} if type(value) is int else value
        )
    except (SpecError, ValidationError) as problem:
        reason = str(problem) if isinstance(problem, SpecError) else problem.errors()[0]["msg"]
        # The message about a dict does not say which field holds it.
        prefix = f"{info.field_name}: " if isinstance(value, dict) else ""
        raise ValueError(prefix + reason) from None
    return length


LengthDistribution = Annotated[
    Fixed | Uniform | LogNormal, Field(discriminator="kind"), WrapValidator(_as_length)
]
"""A length that is drawn at random."""
Length = Annotated[
    Fixed | Uniform | LogNormal | FromTrace, Field(discriminator="kind"), WrapValidator(_as_length)
]
"""A length that is drawn at random or read from a trace."""


class RandomPrompts(Strict):
    """Ids of regular tokens, drawn at random for each prompt.

    The shared prefixes are drawn first. Each prompt starts with one of them, all equally likely.
    """

    kind: Literal["random"] = Field("random", description="Token ids drawn at random.")
    input: Length = Field(description="Tokens of a prompt, including the prefix.")
    output: Length = Field(description="Output tokens to request.")
    shared_prefix_tokens: TokensOrZero = Field(0, description="Tokens of a shared prefix.")
    prefixes: int = Field(1, ge=1, le=100_000, description="Number of different prefixes.")

    @model_validator(mode="after")
    def _prefix_fits(self) -> Self:
        if not isinstance(self.input, FromTrace):
            self.check_prefix(self.input.low)
        return self

    def check_prefix(self, tokens: int) -> None:
        """Check that a prompt of `tokens` tokens has room for the shared prefix.

        Raises:
            ValueError: The prefix is longer.
        """
        if tokens < self.shared_prefix_tokens:
            raise ValueError(
                f"RandomPrompts.input = {tokens} is below shared_prefix_tokens = "
                f"{self.shared_prefix_tokens}; raise the first or lower the second"
            )


class Conversations(Strict):
    """Chats of `turns` turns as token ids. Each turn is sent with the whole history.

    The prompt of a turn is the system part (shared by all conversations), every earlier user part
    with its answer, and the new user part. The answers in it are drawn at random too, as long as
    requested, and are not the model's. A prompt is therefore the same bytes in every repetition,
    whatever the model answers. A prefix cache finds the whole prompt of the turn before, but not
    its answer.
    """

    kind: Literal["conversations"] = Field("conversations", description="Chats of several turns.")
    turns: int = Field(ge=1, le=10_000, description="Requests per conversation.")
    input: LengthDistribution = Field(description="Tokens of the user's part of a turn.")
    output: LengthDistribution = Field(description="Output tokens to request per turn.")
    system_tokens: TokensOrZero = Field(0, description="Tokens that all conversations start with.")
    think_s: float = Field(
        0, ge=0, description="Mean wait before the next turn, in seconds; exponential."
    )


class TracePrompts(Strict):
    """The prompts of the replayed trace, so that they share prefixes as recorded.

    Requests with `hash_ids` are sent as token ids, in which the same id is the same block of
    tokens. Texts and messages are sent as they are. A request that has neither is drawn at random.
    The turns of a session are sent one after another: a turn is sent with the whole history, in
    which the answers are drawn at random, unless it has messages.
    """

    kind: Literal["trace"] = Field("trace", description="As recorded.")
    output: Length = Field(FromTrace(), description="Output tokens to request.")


class FilePrompts(Strict):
    """The prompts of a file in order, starting again at the first after the last.

    A file has JSON lines or one JSON array, or is a Parquet file. A line is a `prompt`, the
    `messages` of a chat, a conversation as in ShareGPT, LMSYS-Chat and WildChat, or a request of an
    OpenAI batch. Other fields are ignored.
    """

    kind: Literal["file"] = Field("file", description="Prompts of a file.")
    path: str = Field(
        min_length=1,
        description="Path of the file, or hf://datasets/OWNER/NAME/FILE for one of the hub.",
    )
    output: Length | None = Field(
        None, description="Output tokens to request for lines that have no length."
    )
    turns: Literal["first", "all"] = Field(
        "first", description="Which turns of a conversation to send."
    )
    think_s: float = Field(
        0, ge=0, description="Mean wait before the next turn, in seconds; exponential."
    )
    limit: int | None = Field(None, ge=1, description="Maximum number of prompts to read.")
    unfit: Literal["skip", "clip", "reject"] = Field(
        "skip",
        description="What to do with prompts that do not fit the context; clip: shorten answers.",
    )


PromptSet = Annotated[
    RandomPrompts | Conversations | TracePrompts | FilePrompts, Field(discriminator="kind")
]
