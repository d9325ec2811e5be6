"""The table of claims in docs/claims.md and its summary in README.md, made from archived runs.

`keep` copies the verdicts of a finished run into a small JSON file. `write_table` makes the table
and the summary from these files, each between two marks. Of several runs of one claim against one
opponent on the same hardware and model, the newest that measured it counts.
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
CLAIMS, README = ROOT / "docs" / "claims.md", ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
KEPT = RESULTS / "claims"
PLACES = (KEPT, RESULTS / "gpu")
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
"""Figures of a run's summary that are kept beside its verdicts."""
NOT_RECORDED = (*LOCATION_PARAMETERS, "live", "address", "port")
"""Parameters that say where a run went and who looked on, and shape nothing in it."""
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


class KeptRun(Frozen):
    """What is kept of a finished run: small enough for the repository."""

    run_id: str = Field(description="The run's folder.")
    date: str = Field(description="When it began, in UTC.")
    notebook: str = Field(description="The notebook that measured.")
    parameters: dict[str, Any] = Field(description="Its parameters, without where it went.")
    machine: dict[str, Any] = Field(description="CPU, cores, memory, GPUs.")
    versions: dict[str, str] = Field(description="Of the packages used.")
    summary: dict[str, Any] | None = Field(description="A few figures of the run's summary.")
    verdicts: tuple[Verdict, ...] = Field(min_length=1, description="What it says of claims.")


def archive(folder: str | Path, to: Path = KEPT) -> Path:
    """Take the finished run in `folder` to `to/RUN_ID.json`; the path of that file.

    Raises RunError for a folder that is no run, or whose run has judged no claim.
    """
    run = Run.open(folder)
    if not (run.path / FILE).exists():
        raise RunError(
            f"{folder} has no {FILE}: it has not finished, or its notebook judges no claim"
        )
    given = run.experiment.get("parameters") or {}
    kept = KeptRun(
        run_id=run.run_id,
        date=str(run.document["date"]),
        notebook=str(run.experiment.get("notebook") or ""),
        parameters=redact({n: value for n, value in given.items() if n not in NOT_RECORDED}),
        machine=run.document["hardware"],
        versions=run.document["versions"],
        summary=_summary(run),
        verdicts=read_verdicts(run.path),
    )
    path = to / f"{run.run_id}.json"
    to.mkdir(parents=True, exist_ok=True)
    write_document(path, kept.model_dump(mode="json"))
    return path


def _summary(run: Run) -> dict[str, Any] | None:
    summary = run.summary()
    if summary is None:
        return None
    found = {name: summary.figure(name) for name in SUMMARY}
    return found | {
        "client_limited": summary.client_health.client_limited,
        "cost": summary.cost,
    }


def read_kept(places: Iterable[Path] = PLACES) -> list[KeptRun]:
    """All runs kept in the folders `places`, in the order of their names.

    Files without `verdicts` are other results and passed over. Raises RunError for one that is
    broken.
    """
    found = []
    for path in [path for place in places for path in sorted(place.glob("*.json"))]:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as problem:
            raise RunError(f"{path} is no JSON: {problem}") from None
        if isinstance(document, dict) and "verdicts" in document:
            try:
                found.append(KeptRun.model_validate(document))
            except ValidationError as problem:
                raise RunError(f"{path}: {explain(problem, KeptRun)}") from None
    return found


def latest_verdicts(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Of each claim, opponent, hardware and model the latest that measured; of a GPU first."""
    latest: dict[tuple[str, ...], Verdict] = {}

    def age(one: Verdict) -> tuple[bool, str, str]:
        # A run that left an opponent out says nothing against one that did not.
        return one.ratio is not None, one.where.date, one.where.run_id

    for one in sorted(verdicts, key=age):
        place = (one.where.accelerator, one.where.hardware, one.where.model)
        latest[(one.claim.name, one.claim.figure, one.opponent, *place)] = one
    return sorted(
        latest.values(),
        key=lambda one: (one.where.accelerator != "gpu", one.claim.name, one.opponent),
    )


def table(verdicts: Sequence[Verdict]) -> str:
    """The claims as a Markdown table, with notes on CPU rows and on flash attention."""
    if not verdicts:
        return "No run has judged a claim yet.\n"
    head = ["claim", "against", "hardware and model", "measured", "verdict", "run"]
    rows = [head, ["---"] * len(head), *(_row(one) for one in latest_verdicts(verdicts))]
    lines = [f"| {' | '.join(_cell(text) for text in row)} |" for row in rows]
    if any(one.where.accelerator == "cpu" for one in verdicts):
        lines += ["", _CPU_NOTE]
    if any(_lacks_flash(one) for one in verdicts):
        lines += ["", _FLASH_NOTE]
    return "\n".join(lines) + "\n"


def _lacks_flash(one: Verdict) -> bool:
    """Whether the opponent would have been faster with a package that its host did not have."""
    versions = one.where.versions
    continuous = "continuous" in one.opponent and one.ratio is not None
    return continuous and one.where.accelerator == "gpu" and FLASH_ATTN not in versions


def _row(one: Verdict) -> list[str]:
    measured = "-"
    if one.ratio is not None:
        interval = "" if one.low is None else f" ({one.low:.3g} to {one.high:.3g})"
        pairs = f"{one.repeats} pair{'s' if one.repeats != 1 else ''}"
        measured = f"{one.ratio:.3g}x{interval}, {pairs}"
    said = f"**{one.verdict}**"
    if one.verdict == "not decided":
        said += f": {one.reason}"
    said += "".join(f"; {note}" for note in _notes(one))
    return [_claim(one), one.opponent, _hardware(one), measured, said, f"`{one.where.run_id}`"]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def summary_table(verdicts: Iterable[Verdict]) -> str:
    """The decided claims as a short Markdown table, one row per claim, hardware and model."""
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
    return [*verdict.notes, *(["without flash attention"] if _lacks_flash(verdict) else [])]


def with_table(text: str, made: str, begin: str = BEGIN, end: str = END) -> str:
    """`text` with `made` between two marks. Raises SettingError if a mark is missing."""
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise SettingError(f"the document has no lines {begin} and {end}; restore them")
    return f"{before}{begin}\n\n{made}\n{end}{after}"


def write_table(page: Path = CLAIMS, readme: Path = README, places: Iterable[Path] = PLACES) -> int:
    """Write the table into `page` and the summary into `readme`.

    Returns:
        The number of rows of the table.
    """
    verdicts = [verdict for run in read_kept(places) for verdict in run.verdicts]
    for path, made, begin, end in (
        (page, table(verdicts), BEGIN, END),
        (readme, summary_table(verdicts), SUMMARY_BEGIN, SUMMARY_END),
    ):
        text = with_table(path.read_text(encoding="utf-8"), made, begin, end)
        path.write_text(text, encoding="utf-8")
    return len(latest_verdicts(verdicts))
