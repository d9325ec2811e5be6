"""A claim as an experiment that can fail: its goal, what was measured, PASS, FAIL or neither.

A claim says that one side is at least `goal` times as good as an opponent. It is measured in pairs,
one of each side, one after the other; a pair's ratio is ours over theirs, so that for a price or a
time, where less is better, theirs is given over ours by swapping the pair. The ratio is the
geometric mean over the pairs, with the bootstrap interval of `workbench.metrics.bootstrap`:

- PASS: the whole interval is at or above the goal. FAIL: the whole interval is below it.
- `not decided`: the goal lies inside the interval, there are fewer than three pairs, or there is a
  doubt about the figures (a client that limited them, an opponent that could not be measured).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from serving.spec.base import Frozen, explain
from workbench.errors import RunError

if TYPE_CHECKING:
    import numpy as np

    from workbench.runs.run import Run

FILE = "claims.json"
LEAST_REPEATS = 3

Pairs = Sequence[tuple[float, float]]
Word = Literal["PASS", "FAIL", "not decided"]


class Claim(Frozen):
    """What is said: at least `goal` times `figure`."""

    name: str = Field(min_length=1, description="As the table names it: '24x the throughput'.")
    figure: str = Field(min_length=1, description="What is compared, as 'output tokens/s'.")
    goal: float = Field(gt=0, description="The least ratio that the claim stands for.")


class Where(Frozen):
    """The run that measured, and what it ran on."""

    run_id: str = Field(description="The run's folder.")
    date: str = Field(description="When the run began, in UTC.")
    notebook: str = Field("", description="The notebook that measured.")
    model: str = Field("", description="The model, and that its weights are random if they are.")
    hardware: str = Field(description="GPU or CPU, in words; no name of the host.")
    accelerator: Literal["cpu", "gpu"] = Field(description="What the engines computed on.")
    versions: dict[str, str] = Field(default_factory=dict, description="Of the packages used.")


class Verdict(Frozen):
    """One claim against one opponent. Absent is None: what was not measured has no ratio."""

    claim: Claim
    opponent: str = Field(min_length=1, description="What was compared with.")
    verdict: Word = Field(description="PASS, FAIL or not decided.")
    reason: str = Field(min_length=1, description="Why, in one line.")
    ours: float | None = Field(None, description="Mean of our side.")
    theirs: float | None = Field(None, description="Mean of the opponent's side.")
    ratio: float | None = Field(None, description="Geometric mean of the pairs' ratios.")
    low: float | None = Field(None, description="Lower end of its interval.")
    high: float | None = Field(None, description="Upper end of its interval.")
    repeats: int = Field(0, ge=0, description="Pairs measured.")
    notes: tuple[str, ...] = Field((), description="What a reader should know beside it.")
    where: Where

    def __str__(self) -> str:
        return f"{self.verdict}: {self.claim.name} against {self.opponent}: {self.reason}"


def evaluate_claim(
    claim: Claim,
    opponent: str,
    pairs: Pairs,
    *,
    where: Where,
    rng: np.random.Generator,
    doubts: Sequence[str] = (),
    notes: Sequence[str] = (),
    confidence: float = 0.95,
) -> Verdict:
    """The verdict on `pairs` of (ours, theirs), of which the claim says ours / theirs >= goal.

    Each of `doubts` is a reason why the figures, though measured, decide nothing.
    """
    from workbench.metrics.bootstrap import bootstrap

    measured = _measured(pairs)
    reasons = [*doubts, *_too_little(pairs)]
    if len(pairs) >= LEAST_REPEATS and "ratio" in measured:
        logs = bootstrap([math.log(a / b) for a, b in pairs], rng=rng, confidence=confidence)
        measured |= {"low": math.exp(logs.low), "high": math.exp(logs.high)}
    word, reason = _word(claim, measured, reasons)
    fixed = {"claim": claim, "opponent": opponent, "where": where, "notes": tuple(notes)}
    return Verdict(verdict=word, reason=reason, **fixed, **measured)


def _measured(pairs: Pairs) -> dict[str, Any]:
    if not pairs:
        return {}
    n = len(pairs)
    found = {
        "repeats": n,
        "ours": sum(a for a, _ in pairs) / n,
        "theirs": sum(b for _, b in pairs) / n,
    }
    if all(a > 0 and b > 0 for a, b in pairs):
        found["ratio"] = math.exp(sum(math.log(a / b) for a, b in pairs) / n)
    return found


def _too_little(pairs: Pairs) -> list[str]:
    if len(pairs) < LEAST_REPEATS:
        return [f"{len(pairs)} of at least {LEAST_REPEATS} repeats"]
    if not all(a > 0 and b > 0 for a, b in pairs):
        return ["one side measured 0 in a repeat, which has no ratio"]
    return []


def _word(claim: Claim, measured: Mapping[str, Any], reasons: Sequence[str]) -> tuple[Word, str]:
    if reasons:
        return "not decided", "; ".join(reasons)
    low, high, goal = measured["low"], measured["high"], claim.goal
    said = f"{measured['ratio']:.3g}x ({low:.3g} to {high:.3g})"
    if low >= goal:
        return "PASS", f"{said} is at least {goal:g}x"
    if high < goal:
        return "FAIL", f"{said} is below {goal:g}x"
    return "not decided", f"{said} has {goal:g}x inside its interval; more repeats narrow it"


def where(run: Run, *, model: str = "", accelerator: Literal["cpu", "gpu"] = "cpu") -> Where:
    """What `run` ran on, for its verdicts."""
    document = run.document
    return Where(
        run_id=run.run_id,
        date=str(document["date"]),
        notebook=str(run.experiment.get("notebook") or ""),
        model=model,
        hardware=hardware_label(document["hardware"], accelerator),
        accelerator=accelerator,
        versions=document["versions"],
    )


def hardware_label(hardware: Mapping[str, Any], accelerator: str) -> str:
    """`workbench.runs.provenance.hardware` in a few words: the cards, or the CPU and its cores."""
    gpus = [str(gpu).split(",")[0] for gpu in hardware.get("gpus", [])]
    if accelerator == "gpu" and gpus:
        counts = {gpu: gpus.count(gpu) for gpu in gpus}
        return ", ".join(gpu if n == 1 else f"{n} x {gpu}" for gpu, n in counts.items())
    return f"{hardware.get('cpu')}, {hardware.get('cores')} cores, no GPU used"


class _Kept(Frozen):
    verdicts: tuple[Verdict, ...]


def write_verdicts(run: Run, verdicts: Sequence[Verdict]) -> Path:
    """Keep the verdicts as `claims.json` in the run's folder; its path."""
    from workbench.runs.jsonl import write_document

    path = run.path / FILE
    write_document(path, _Kept(verdicts=tuple(verdicts)).model_dump(mode="json"))
    return path


def read_verdicts(path: str | Path) -> tuple[Verdict, ...]:
    """The verdicts of a run's folder or of a file such as `claims.json`.

    Raises RunError for a file that is not there or holds something else.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        return _Kept.model_validate_json(file.read_bytes()).verdicts
    except OSError as problem:
        raise RunError(f"{file} cannot be read: {problem.strerror}") from None
    except ValidationError as problem:
        raise RunError(f"{file} holds no verdicts: {explain(problem, _Kept)}") from None
