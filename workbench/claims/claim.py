"""A claim as an experiment that can fail: its goal, its measurements, and PASS, FAIL or neither.

A claim states that the candidate is at least `goal` times as good as an opponent. Both are measured
in pairs, one after the other. The ratio of a pair is candidate over opponent; for a price or a
time, where lower is better, swap the pair. The ratio of the claim is the geometric mean over the
pairs, with the bootstrap interval of `workbench.metrics.bootstrap`:

- PASS: the whole interval is at or above the goal. FAIL: the whole interval is below it.
- `not decided`: the goal is inside the interval, there are fewer than three pairs, or a caveat
  blocks a verdict (the client limited the figures, an opponent could not be measured).

To add a claim, add an entry to `CLAIMS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, ValidationError

from serving.spec.base import Frozen, explain
from workbench.errors import RunError, SettingError
from workbench.metrics.bootstrap import MIN_REPEATS, bootstrap

if TYPE_CHECKING:
    import numpy as np

    from workbench.runs.run import Run

FILE = "claims.json"

CLAIMS = {
    "throughput": ("{goal:g}x the throughput", "output tokens/s, {lengths} lengths"),
    "users": ("{goal:g}x the users", "users within the SLO"),
    "cost": ("2-4x less spent", "fewer $ per million tokens within the SLO"),
}
"""The name and the figure of every claim, with the fields that `Claim.from_kind` fills in."""

Pairs = Sequence[tuple[float, float]]
VerdictLabel = Literal["PASS", "FAIL", "not decided"]
Accelerator = Literal["cpu", "gpu"]


class Claim(Frozen):
    """The statement that `figure` is at least `goal` times as good as an opponent's."""

    name: str = Field(min_length=1, description="Name in the table, such as '24x the throughput'.")
    figure: str = Field(min_length=1, description="Compared figure, such as 'output tokens/s'.")
    goal: float = Field(gt=0, description="The lowest ratio for which the claim holds.")

    @classmethod
    def from_kind(cls, kind: str, *, goal: float, **details: str) -> Self:
        """Return the claim `kind` of `CLAIMS` with its goal.

        Args:
            kind: A key of `CLAIMS`.
            goal: The lowest ratio for which the claim holds.
            details: Further fields of its name and figure, such as `lengths`.

        Raises:
            SettingError: If there is no such claim, or a detail is missing.
        """
        if kind not in CLAIMS:
            raise SettingError(f"claim must be one of {', '.join(CLAIMS)}, got {kind!r}")
        name, figure = CLAIMS[kind]
        try:
            return cls(
                name=name.format(goal=goal, **details),
                figure=figure.format(goal=goal, **details),
                goal=goal,
            )
        except KeyError as missing:
            raise SettingError(f"claim {kind!r} needs {missing.args[0]}: give it") from None


class RunInfo(Frozen):
    """A run that measured a claim, and what it ran on."""

    run_id: str = Field(description="Id of the run.")
    date: str = Field(description="Start of the run, in UTC.")
    notebook: str = Field("", description="Notebook that took the measurement.")
    model: str = Field("", description="The model, and whether its weights are random.")
    hardware: str = Field(description="GPU or CPU, in words; no host name.")
    accelerator: Accelerator = Field(description="Device type of the engines.")
    versions: dict[str, str] = Field(default_factory=dict, description="Package versions.")

    @classmethod
    def from_run(cls, run: Run, *, model: str = "", accelerator: Accelerator = "cpu") -> Self:
        """Describe `run`, whose engines served `model` on `accelerator`."""
        document = run.document
        return cls(
            run_id=run.run_id,
            date=str(document["date"]),
            notebook=str(run.experiment.get("notebook") or ""),
            model=model,
            hardware=hardware_label(document["hardware"], accelerator),
            accelerator=accelerator,
            versions=document["versions"],
        )


class Verdict(Frozen):
    """The verdict on a claim against one opponent. Figures that were not measured are None."""

    claim: Claim
    opponent: str = Field(
        min_length=1, description="The baseline that the candidate was compared with."
    )
    verdict: VerdictLabel = Field(description="PASS, FAIL or not decided.")
    reason: str = Field(min_length=1, description="Reason for the verdict, in one line.")
    ours: float | None = Field(None, description="Mean of the candidate's figure.")
    theirs: float | None = Field(None, description="Mean of the opponent's figure.")
    ratio: float | None = Field(None, description="Geometric mean of the pairs' ratios.")
    low: float | None = Field(None, description="Lower end of the interval of the ratio.")
    high: float | None = Field(None, description="Upper end of the interval of the ratio.")
    repeats: int = Field(0, ge=0, description="Number of pairs.")
    notes: tuple[str, ...] = Field((), description="Remarks that do not block a verdict.")
    where: RunInfo = Field(description="The run that measured the claim.")

    def __str__(self) -> str:
        return f"{self.verdict}: {self.claim.name} against {self.opponent}: {self.reason}"


def evaluate_claim(
    claim: Claim,
    opponent: str,
    pairs: Pairs,
    *,
    where: RunInfo,
    rng: np.random.Generator,
    caveats: Sequence[str] = (),
    notes: Sequence[str] = (),
    confidence: float = 0.95,
) -> Verdict:
    """Return the verdict on a claim against one opponent.

    Args:
        claim: The claim, that candidate / opponent >= goal.
        opponent: Its name.
        pairs: The figures of (candidate, opponent), one pair per repeat.
        where: The run that measured.
        rng: Resamples the pairs.
        caveats: Reasons why the figures, although measured, decide nothing.
        notes: Remarks that do not block a verdict.
        confidence: Of the interval.
    """
    measured = _means(pairs)
    reasons = [*caveats, *_insufficient(pairs)]
    if len(pairs) >= MIN_REPEATS and "ratio" in measured:
        logs = bootstrap([math.log(a / b) for a, b in pairs], rng=rng, confidence=confidence)
        measured |= {"low": math.exp(logs.low), "high": math.exp(logs.high)}
    decision, reason = _decide(claim, measured, reasons)
    fixed = {"claim": claim, "opponent": opponent, "where": where, "notes": tuple(notes)}
    return Verdict(verdict=decision, reason=reason, **fixed, **measured)


def _means(pairs: Pairs) -> dict[str, Any]:
    if not pairs:
        return {}
    n = len(pairs)
    means = {
        "repeats": n,
        "ours": sum(a for a, _ in pairs) / n,
        "theirs": sum(b for _, b in pairs) / n,
    }
    if all(a > 0 and b > 0 for a, b in pairs):
        means["ratio"] = math.exp(sum(math.log(a / b) for a, b in pairs) / n)
    return means


def _insufficient(pairs: Pairs) -> list[str]:
    if len(pairs) < MIN_REPEATS:
        return [f"{len(pairs)} of at least {MIN_REPEATS} repeats"]
    if not all(a > 0 and b > 0 for a, b in pairs):
        return ["a side measured 0 in a repeat, so that there is no ratio"]
    return []


def _decide(
    claim: Claim, measured: Mapping[str, Any], reasons: Sequence[str]
) -> tuple[VerdictLabel, str]:
    if reasons:
        return "not decided", "; ".join(reasons)
    low, high, goal = measured["low"], measured["high"], claim.goal
    ratio = f"{measured['ratio']:.3g}x ({low:.3g} to {high:.3g})"
    if low >= goal:
        return "PASS", f"{ratio} is at least {goal:g}x"
    if high < goal:
        return "FAIL", f"{ratio} is below {goal:g}x"
    return "not decided", f"the interval of {ratio} contains {goal:g}x; more repeats narrow it"


def hardware_label(hardware: Mapping[str, Any], accelerator: str) -> str:
    """Return `workbench.runs.provenance.hardware` in a few words: GPUs, or CPU and cores."""
    gpus = [str(gpu).split(",")[0] for gpu in hardware.get("gpus", [])]
    if accelerator == "gpu" and gpus:
        counts = {gpu: gpus.count(gpu) for gpu in gpus}
        return ", ".join(gpu if n == 1 else f"{n} x {gpu}" for gpu, n in counts.items())
    return f"{hardware.get('cpu')}, {hardware.get('cores')} cores, no GPU used"


class _File(Frozen):
    verdicts: tuple[Verdict, ...]


def write_verdicts(run: Run, verdicts: Sequence[Verdict]) -> Path:
    """Write the verdicts to `claims.json` in the run's folder and return its path."""
    from workbench.runs.jsonl import write_document

    path = run.path / FILE
    write_document(path, _File(verdicts=tuple(verdicts)).model_dump(mode="json"))
    return path


def read_verdicts(path: str | Path) -> tuple[Verdict, ...]:
    """Return the verdicts in a run's folder, or in a file such as `claims.json`.

    Raises:
        RunError: If the file does not exist or contains something else.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        return _File.model_validate_json(file.read_bytes()).verdicts
    except OSError as problem:
        raise RunError(f"{file} cannot be read: {problem.strerror}") from None
    except ValidationError as problem:
        raise RunError(f"{file} does not contain verdicts: {explain(problem, _File)}") from None
