"""Generate the requests of a prompt file: lengths of answers, turns, and the model's context."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice
from typing import TYPE_CHECKING

from workbench.errors import SettingError
from workbench.workload.prompt import Prompt, ToolPrompt, check_context
from workbench.workload.prompt_files import FilePrompt, FileTurn
from workbench.workload.prompts import FilePrompts, LengthDistribution

if TYPE_CHECKING:
    import numpy as np

TOO_LONG = "longer than the context"
CLIPPED = "answers shortened to the context"


@dataclass(frozen=True)
class FileContext:
    """The specification, the context of the model, and the counts of what is left out."""

    spec: FilePrompts
    max_model_len: int | None
    left_out: Counter[str]

    def room(self, turn: FileTurn) -> float:
        """Return the tokens that are left for the answer."""
        return float("inf") if self.max_model_len is None else self.max_model_len - turn.tokens

    def fitted(self, where: str, turn: FileTurn, output: int, *, clip: bool) -> FileTurn | None:
        """Return the turn if an answer of `output` tokens fits, or can be clipped to fit.

        Raises:
            SettingError: It does not fit, and `unfit` is 'reject'.
        """
        room = self.room(turn)
        if output <= room:
            return turn
        if self.spec.unfit == "reject":
            fields = f"{where}: the prompt = {turn.tokens} and output_tokens = {output}"
            check_context(fields, turn.tokens + output, self.max_model_len)
        if not clip or room < 1:
            return None
        self.left_out[CLIPPED] += 1
        return turn._replace(most_output=int(room))


def file_prompts(
    context: FileContext,
    rng: np.random.Generator,
    prompts: Iterable[FilePrompt],
    outputs: Sequence[LengthDistribution],
    *,
    traced: bool,
) -> Iterator[Prompt]:
    """Return the requests without end or, if the outputs are `traced`, one prompt per output.

    Raises:
        SettingError: A prompt does not fit and `unfit` is 'reject', or none is left.
    """
    # The length of a traced answer is known only with its request.
    longest = 1 if traced else max(output.high for output in outputs)
    fitting = list(_fitting(context, prompts, longest))
    if not fitting:
        reasons = ", ".join(f"{number} {reason}" for reason, number in context.left_out.items())
        raise SettingError(
            f"FilePrompts.path = {context.spec.path!r}: no prompt is left ({reasons}); give "
            "another file, a model with a longer context, or FilePrompts.unfit = 'clip'"
        )
    number = len(outputs) if traced else len(fitting)
    pairs = list(islice(zip(cycle(fitting), cycle(outputs)), number))
    if traced:
        pairs = [(_with_room(context, prompt, output), output) for prompt, output in pairs]
    return _requests(context.spec, rng, pairs if traced else cycle(pairs))


def _fitting(
    context: FileContext, prompts: Iterable[FilePrompt], longest: int
) -> Iterator[FilePrompt]:
    clip = context.spec.unfit == "clip"
    for prompt in prompts:
        kept: list[FileTurn] = []
        for turn in prompt.turns:
            output = turn.output_tokens or longest
            fitted = context.fitted(prompt.where, turn, output, clip=clip)
            if fitted is None:
                context.left_out[TOO_LONG] += len(prompt.turns) - len(kept)
                break
            kept.append(fitted)
        if kept:
            yield prompt._replace(turns=tuple(kept))


def _with_room(context: FileContext, prompt: FilePrompt, output: LengthDistribution) -> FilePrompt:
    """Return the prompt with answers clipped: leaving it out would move the later arrivals."""
    fitted = (
        context.fitted(prompt.where, turn, turn.output_tokens or output.high, clip=True)
        for turn in prompt.turns
    )
    return prompt._replace(turns=tuple(turn for turn in fitted if turn is not None))


def _requests(
    spec: FilePrompts,
    rng: np.random.Generator,
    pairs: Iterable[tuple[FilePrompt, LengthDistribution]],
) -> Iterator[Prompt]:
    for number, (prompt, output) in zip(count(), pairs, strict=False):
        conversation = number if len(prompt.turns) > 1 else None
        for turn, line in enumerate(prompt.turns):
            tokens = line.output_tokens or output.draw(rng)
            if line.most_output is not None:
                tokens = min(tokens, line.most_output)
            think_s = float(rng.exponential(spec.think_s)) if turn and spec.think_s else 0.0
            fields = (line.content, line.tokens, tokens, conversation, turn, think_s)
            yield ToolPrompt(*fields, line.tools) if line.tools else Prompt(*fields)
