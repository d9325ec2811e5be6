"""The table of claims in docs/claims.md and its summary in README.md, from archived runs.

`archive` copies the verdicts of a finished run into a small JSON file. `write_table` writes the
table and the summary from these files, each between two marks. Of several runs that measured one
claim against one opponent on the same hardware and model, the newest counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from serving.spec.base import Frozen, explain
from workbench.claims.claim import FILE, Verdict, read_verdicts
from workbench.errors import RunError, SettingError
from workbench.runs.jsonl import write_document
from workbench.runs.provenance import FLASH_ATTN
from workbench.runs.redact import redact
from workbench.runs.run import LOCATION_PARAMETERS, Run

ROOT = Path(__file__).resolve().parents[2]
PAGE, README = ROOT / "docs" / "claims.md", ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
ARCHIVE = RESULTS / "claims"
ARCHIVES = (ARCHIVE, RESULTS / "gpu")
BEGIN, END = "<!-- claims: written by `make claims` -->", "<!-- end of claims -->"
SUMMARY_BEGIN = "<!-- claims summary: written by `make claims` -->"
SUMMARY_END = "<!-- end of claims summary -->"
SUMMARY = (
    "completed",
    "failed",
    "shed",
    "duration",
    "output_throughput",
    "request_goodput",
    "slo_attainment",
    "p95_ttft_ms",
    "p95_tpot_ms",
)
"""Figures of a run's summary that are archived with its verdicts."""
NOT_ARCHIVED = (*LOCATION_PARAMETERS, "live", "address", "port")
"""Parameters that do not affect the results of a run."""
_CPU_NOTE = (
    "**Rows measured on a CPU use a tiny model.** They show that the experiment works and can "
    "fail, not what a GPU would give: there is hardly any memory traffic to save, and all "
    "processes share the same few cores."
)

_FLASH_NOTE = (
    "**transformers' continuous batching ran without flash attention** where the row says so: the "
    "host had no `flash-attn` package, so attention uses a mask over the whole cache. According "
    "to the documentation of transformers, flash attention is much better there, so a PASS "
    "against this opponent is one against its slower form."
)


class ArchivedRun(Frozen):
    """The part of a finished run that is small enough for the repository."""

    run_id: str = Field(description="Id of the run.")
    date: str = Field(description="Start of the run, in UTC.")
    notebook: str = Field(description="Notebook that took the measurement.")
    parameters: dict[str, Any] = Field(
        description="Parameters of the notebook, without the location of the run."
    )
    machine: dict[str, Any] = Field(description="CPU, cores, memory in GB, and GPUs.")
    versions: dict[str, str] = Field(description="Package versions.")
    summary: dict[str, Any] | None = Field(description="Selected figures of the run's summary.")
    verdicts: tuple[Verdict, ...] = Field(min_length=1, description="Verdicts on claims.")


def archive(folder: str | Path, to: Path = ARCHIVE) -> Path:
    """Copy the verdicts of the finished run in `folder` to `to/RUN_ID.json`.

    Returns:
        The path of that file.

    Raises:
        RunError: If `folder` is not a run, or its run has no verdict.
    """
    run = Run.open(folder)
    if not (run.path / FILE).exists():
        raise RunError(
            f"{folder} has no {FILE}: the run is not finished, or its notebook evaluates no claim"
        )
    parameters = run.experiment.get("parameters") or {}
    archived = ArchivedRun(
        run_id=run.run_id,
        date=str(run.document["date"]),
        notebook=str(run.experiment.get("notebook") or ""),
        parameters=redact({n: v for n, v in parameters.items() if n not in NOT_ARCHIVED}),
        machine=run.document["hardware"],
        versions=run.document["versions"],
        summary=_summary(run),
        verdicts=read_verdicts(run.path),
    )
    path = to / f"{run.run_id}.json"
    to.mkdir(parents=True, exist_ok=True)
    write_document(path, archived.model_dump(mode="json"))
    return path


def _summary(run: Run) -> dict[str, Any] | None:
    summary = run.summary()
    if summary is None:
        return None
    figures = {name: summary.figure(name) for name in SUMMARY}
    return figures | {
        "client_limited": summary.client_health.client_limited,
        "cost": summary.cost,
    }


def read_archived(archives: Iterable[Path] = ARCHIVES) -> list[ArchivedRun]:
    """Return all runs in the folders `archives`, by file name.

    Files without `verdicts` are other results and ignored.

    Raises:
        RunError: If a file is invalid.
    """
    runs = []
    for path in [path for folder in archives for path in sorted(folder.glob("*.json"))]:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as problem:
            raise RunError(f"{path} is not JSON: {problem}") from None
        if isinstance(document, dict) and "verdicts" in document:
            try:
                runs.append(ArchivedRun.model_validate(document))
            except ValidationError as problem:
                raise RunError(f"{path}: {explain(problem, ArchivedRun)}") from None
    return runs


def latest_verdicts(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Return the latest measured verdict per claim, opponent, hardware and model, GPUs first."""
    latest: dict[tuple[str, ...], Verdict] = {}

    def age(verdict: Verdict) -> tuple[bool, str, str]:
        # A run that left an opponent out does not replace one that measured it.
        return verdict.ratio is not None, verdict.where.date, verdict.where.run_id

    for verdict in sorted(verdicts, key=age):
        claim, where = verdict.claim, verdict.where
        setup = (where.accelerator, where.hardware, where.model)
        latest[(claim.name, claim.figure, verdict.opponent, *setup)] = verdict
    return sorted(
        latest.values(),
        key=lambda verdict: (
            verdict.where.accelerator != "gpu",
            verdict.claim.name,
            verdict.opponent,
        ),
    )


def claims_table(verdicts: Sequence[Verdict]) -> str:
    """Return the claims as a Markdown table, with notes on CPU rows and on flash attention."""
    if not verdicts:
        return "No run has evaluated a claim yet.\n"
    head = ["claim", "against", "hardware and model", "measured", "verdict", "run"]
    rows = [head, ["---"] * len(head), *(_row(verdict) for verdict in latest_verdicts(verdicts))]
    lines = [f"| {' | '.join(_cell(text) for text in row)} |" for row in rows]
    if any(verdict.where.accelerator == "cpu" for verdict in verdicts):
        lines += ["", _CPU_NOTE]
    if any(_lacks_flash_attention(verdict) for verdict in verdicts):
        lines += ["", _FLASH_NOTE]
    return "\n".join(lines) + "\n"


def _lacks_flash_attention(verdict: Verdict) -> bool:
    """Return whether the opponent would have been faster with flash attention installed."""
    continuous = "continuous" in verdict.opponent and verdict.ratio is not None
    where = verdict.where
    return continuous and where.accelerator == "gpu" and FLASH_ATTN not in where.versions


def _row(verdict: Verdict) -> list[str]:
    measured = "-"
    if verdict.ratio is not None:
        interval = "" if verdict.low is None else f" ({verdict.low:.3g} to {verdict.high:.3g})"
        pairs = f"{verdict.repeats} pair{'s' if verdict.repeats != 1 else ''}"
        measured = f"{verdict.ratio:.3g}x{interval}, {pairs}"
    decision = f"**{verdict.verdict}**"
    if verdict.verdict == "not decided":
        decision += f": {verdict.reason}"
    decision += "".join(f"; {note}" for note in _notes(verdict))
    run_id = f"`{verdict.where.run_id}`"
    return [_claim(verdict), verdict.opponent, _hardware(verdict), measured, decision, run_id]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def summary_table(verdicts: Iterable[Verdict]) -> str:
    """Return the decided claims as a Markdown table, one row per claim, hardware and model."""
    decided = [verdict for verdict in latest_verdicts(verdicts) if verdict.verdict != "not decided"]
    if not decided:
        return "No claim has been decided yet.\n"
    cells: dict[tuple[str, str], dict[str, list[str]]] = {}
    for verdict in decided:
        row = (_claim(verdict), _hardware(verdict))
        against = cells.setdefault(row, {"PASS": [], "FAIL": []})
        against[verdict.verdict].append(f"{verdict.opponent}: {_short_ratio(verdict)}")
    lines = ["| claim | hardware and model | PASS against | FAIL against |", "| --- " * 4 + "|"]
    for row, against in cells.items():
        columns = [*row, *("<br>".join(entries) or "-" for entries in against.values())]
        lines.append(f"| {' | '.join(_cell(text) for text in columns)} |")
    if any(_notes(verdict) for verdict in decided):
        lines += ["", "\\* with a note in docs/claims.md"]
    return "\n".join(lines) + "\n"


def _short_ratio(verdict: Verdict) -> str:
    mark = "\\*" if _notes(verdict) else ""
    return f"{verdict.ratio:.3g}x ({verdict.low:.3g} to {verdict.high:.3g}){mark}"


def _claim(verdict: Verdict) -> str:
    claim = verdict.claim
    return f"{claim.name}: at least {claim.goal:g}x {claim.figure}"


def _hardware(verdict: Verdict) -> str:
    cpu = "CPU: " if verdict.where.accelerator == "cpu" else ""
    return "; ".join(
        part for part in (f"{cpu}{verdict.where.hardware}", verdict.where.model) if part
    )


def _notes(verdict: Verdict) -> list[str]:
    return [
        *verdict.notes,
        *(["without flash attention"] if _lacks_flash_attention(verdict) else []),
    ]


def with_table(text: str, content: str, begin: str = BEGIN, end: str = END) -> str:
    """Return `text` with `content` between two marks.

    Raises:
        SettingError: If a mark is missing.
    """
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise SettingError(f"the document has no lines {begin} and {end}: restore them")
    return f"{before}{begin}\n\n{content}\n{end}{after}"


def write_table(
    page: Path = PAGE, readme: Path = README, archives: Iterable[Path] = ARCHIVES
) -> int:
    """Write the table into `page` and the summary into `readme`.

    Returns:
        The number of rows of the table.
    """
    verdicts = [verdict for run in read_archived(archives) for verdict in run.verdicts]
    for path, content, begin, end in (
        (page, claims_table(verdicts), BEGIN, END),
        (readme, summary_table(verdicts), SUMMARY_BEGIN, SUMMARY_END),
    ):
        text = with_table(path.read_text(encoding="utf-8"), content, begin, end)
        path.write_text(text, encoding="utf-8")
    return len(latest_verdicts(verdicts))
