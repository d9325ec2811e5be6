"""Fit the requests of a trace to a load: lengths that are missing, and contexts that are too short.

A request fits if it has every length that the load takes from the trace, at least the tokens of a
shared prefix, and no more tokens than the model's context.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec.structs import replace

from workbench.errors import SettingError
from workbench.workload.arrivals import TraceReplay
from workbench.workload.prompts import FromTrace, PromptSet, TracePrompts
from workbench.workload.trace_request import Trace, TraceRequest

if TYPE_CHECKING:
    from workbench.workload.tokenizer import Tokenizer

NO_PROMPT = "without prompt tokens"
NO_OUTPUT = "without output tokens"
TOO_SHORT = "shorter than the shared prefix"
TOO_LONG = "longer than the context"


@dataclass(frozen=True)
class _Limits:
    """What a load needs of a request."""

    prompt: bool
    output: bool
    least_prompt: int
    most_prompt: int
    most_output: int
    context: int | None

    @classmethod
    def of(cls, prompts: PromptSet, context: int | None) -> _Limits:
        """Return the needs of `prompts`, whose own lengths are at most `most_...`."""
        own = getattr(prompts, "input", None)
        output = getattr(prompts, "output", None)
        return cls(
            prompt=isinstance(own, FromTrace) or isinstance(prompts, TracePrompts),
            output=isinstance(output, FromTrace),
            least_prompt=getattr(prompts, "shared_prefix_tokens", 0),
            most_prompt=getattr(own, "high", 0),
            most_output=getattr(output, "high", 1),
            context=context,
        )

    def problem(self, request: TraceRequest, history: int = 0) -> str | None:
        """Return why a request does not fit after `history` tokens of its session."""
        if self.prompt and request.prompt_tokens is None:
            return NO_PROMPT
        if self.output and request.output_tokens is None:
            return NO_OUTPUT
        prompt, output = self.lengths(request)
        if self.prompt and prompt < self.least_prompt:
            return TOO_SHORT
        if self.context is not None and history + prompt + output > self.context:
            return TOO_LONG
        return None

    def lengths(self, request: TraceRequest) -> tuple[int, int]:
        """Return the tokens of prompt and answer, at most."""
        prompt = (request.prompt_tokens or 0) if self.prompt else self.most_prompt
        output = (request.output_tokens or 0) if self.output else self.most_output
        return prompt, output


@dataclass
class TraceFit:
    """The requests that fit, and how many did not, by reason."""

    requests: list[TraceRequest] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    clipped: Counter[str] = field(default_factory=Counter)


def fit_trace(
    trace: Trace,
    spec: TraceReplay,
    prompts: PromptSet,
    tokenizer: Tokenizer,
    max_model_len: int | None,
) -> TraceFit:
    """Return the requests of `trace` that fit, as `spec.unfit` says.

    Raises:
        SettingError: A request does not fit and `unfit` is 'reject', or none is left.
    """
    limits = _Limits.of(prompts, max_model_len)
    fit = TraceFit()
    if not limits.prompt and not limits.output:
        fit.requests = trace.requests
        return fit
    for number, request in enumerate(trace.requests, 1):
        if isinstance(prompts, TracePrompts):
            request = _counted(request, tokenizer)
        problem = limits.problem(request)
        if problem is not None:
            if spec.unfit == "reject":
                raise SettingError(_rejection(number, request, problem, limits))
            if spec.unfit == "clip" and (clipped := _clipped(request, limits)) is not None:
                fit.clipped[problem] += 1
                request = clipped
            else:
                fit.skipped[problem] += 1
                continue
        fit.requests.append(_without_unfit_turns(number, request, spec, limits, fit))
    if not fit.requests:
        reasons = ", ".join(f"{count} {reason}" for reason, count in fit.skipped.items())
        raise SettingError(
            f"{spec.path}: none of {len(trace.requests)} requests fits ({reasons}); give other "
            "prompts, a model with a longer context, or TraceReplay.unfit = 'clip'"
        )
    return fit


def _counted(request: TraceRequest, tokenizer: Tokenizer) -> TraceRequest:
    """Return the request with the tokens of its own prompt, if it has one."""
    if request.content is None:
        return request
    if isinstance(request.content, str):
        tokens = len(tokenizer.encode(request.content))
    else:
        tokens = tokenizer.count_chat(request.content, tools=request.tools)
    later = tuple(_counted(turn, tokenizer) for turn in request.later)
    return replace(request, prompt_tokens=tokens or None, later=later)


def _rejection(number: int, request: TraceRequest, problem: str, limits: _Limits) -> str:
    prompt, output = limits.lengths(request)
    lengths = f"prompt = {prompt} and output = {output} tokens"
    limit = "" if limits.context is None else f", with max_model_len = {limits.context}"
    return (
        f"request {number} of the trace does not fit: it is {problem} ({lengths}{limit}); cut the "
        "trace before it, or give TraceReplay.unfit = 'skip' or 'clip'"
    )


def _clipped(request: TraceRequest, limits: _Limits) -> TraceRequest | None:
    """Return the request with lengths that fit; None if its own prompt cannot have them.

    The shorter of the two lengths is kept up to half of the context.
    """
    prompt, output = (max(1, tokens) for tokens in limits.lengths(request))
    prompt = max(prompt, limits.least_prompt)
    if limits.context is not None:
        kept = max(limits.context - prompt, limits.context // 2)
        output = min(output, kept) if limits.output else output
        prompt = min(prompt, limits.context - output)
    own = request.content is not None
    longer = own and prompt > (request.prompt_tokens or 0)
    cut_chat = isinstance(request.content, tuple) and prompt != request.prompt_tokens
    if prompt < max(1, limits.least_prompt) or longer or cut_chat:
        return None
    return replace(
        request,
        prompt_tokens=prompt if limits.prompt else request.prompt_tokens,
        output_tokens=output if limits.output else request.output_tokens,
    )


def _without_unfit_turns(
    number: int, request: TraceRequest, spec: TraceReplay, limits: _Limits, fit: TraceFit
) -> TraceRequest:
    """Return a session without the first turn that does not fit and those after it."""
    if not request.later:
        return request
    kept: list[TraceRequest] = []
    for turn, history in _with_history(request, limits):
        problem = limits.problem(turn, history)
        if problem is not None:
            if spec.unfit == "reject":
                raise SettingError(_rejection(number, turn, problem, limits))
            fit.skipped[problem] += len(request.later) - len(kept)
            break
        kept.append(turn)
    return replace(request, later=tuple(kept))


def _with_history(request: TraceRequest, limits: _Limits) -> Iterator[tuple[TraceRequest, int]]:
    """Yield the later turns with the tokens before each.

    Messages are sent as they are, with their own history.
    """
    history = sum(limits.lengths(request))
    for turn in request.later:
        yield turn, 0 if isinstance(turn.content, tuple) else history
        history += sum(limits.lengths(turn))
