"""The table of claims in the README, made from saved runs: no figure of it is typed by hand.

`keep` takes what a finished run found into a small JSON file; `write_table` makes the table from
those files, between two marks in the README. Of several runs of one claim against one opponent on
the same hardware and model, the newest that measured it counts.
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
from workbench.runs.jsonl import write_whole
from workbench.runs.provenance import FLASH
from workbench.runs.redact import redact
from workbench.runs.run import PLACE, Run

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
KEPT = RESULTS / "claims"
PLACES = (KEPT, RESULTS / "gpu")
BEGIN, END = "<!-- claims: written by `make claims` -->", "<!-- end of claims -->"
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
UNKEPT = (*PLACE, "live", "address", "port")
"""Parameters that say where a run went and who looked on, and shape nothing in it."""
_OF_CPU = (
    "**Rows of a CPU are of a CPU and a tiny model.** They show that the experiment runs and can "
    "fail, not what a GPU gives: there is hardly any memory traffic to save, and every process "
    "shares the same few cores."
)

_OF_FLASH = (
    "**transformers' continuous batching ran without flash attention** where the row says so: the "
    "host had no `flash-attn` package, so that attention goes over a mask of the whole cache. By "
    "transformers' own documentation flash attention is much better there: a PASS against this "
    "opponent is one against its slower form."
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


def keep(folder: str | Path, to: Path = KEPT) -> Path:
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
        parameters=redact({n: value for n, value in given.items() if n not in UNKEPT}),
        machine=run.document["hardware"],
        versions=run.document["versions"],
        summary=_summary(run),
        verdicts=read_verdicts(run.path),
    )
    path = to / f"{run.run_id}.json"
    to.mkdir(parents=True, exist_ok=True)
    write_whole(path, kept.model_dump(mode="json"))
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


def newest(verdicts: Iterable[Verdict]) -> list[Verdict]:
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
    """The claims as a Markdown table, with a word on figures of a CPU where there are some."""
    if not verdicts:
        return "No run has judged a claim yet.\n"
    head = ["claim", "against", "hardware and model", "measured", "verdict", "run"]
    rows = [head, ["---"] * len(head), *(_row(one) for one in newest(verdicts))]
    lines = [f"| {' | '.join(_cell(text) for text in row)} |" for row in rows]
    if any(one.where.accelerator == "cpu" for one in verdicts):
        lines += ["", _OF_CPU]
    if any(_lacks_flash(one) for one in verdicts):
        lines += ["", _OF_FLASH]
    return "\n".join(lines) + "\n"


def _lacks_flash(one: Verdict) -> bool:
    """Whether the opponent would have been faster with a package that its host did not have."""
    versions = one.where.versions
    continuous = "continuous" in one.opponent and one.ratio is not None
    return continuous and one.where.accelerator == "gpu" and FLASH not in versions


def _row(one: Verdict) -> list[str]:
    measured = "-"
    if one.ratio is not None:
        interval = "" if one.low is None else f" ({one.low:.3g} to {one.high:.3g})"
        pairs = f"{one.repeats} pair{'s' if one.repeats != 1 else ''}"
        measured = f"{one.ratio:.3g}x{interval}, {pairs}"
    said = f"**{one.verdict}**"
    if one.verdict == "not decided":
        said += f": {one.reason}"
    lacking = ["without flash attention"] if _lacks_flash(one) else []
    said += "".join(f"; {note}" for note in (*one.notes, *lacking))
    cpu = "a CPU: " if one.where.accelerator == "cpu" else ""
    place = "; ".join(part for part in (f"{cpu}{one.where.hardware}", one.where.model) if part)
    claim = f"{one.claim.name}: at least {one.claim.goal:g}x {one.claim.figure}"
    return [claim, one.opponent, place, measured, said, f"`{one.where.run_id}`"]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def with_table(text: str, made: str) -> str:
    """`text` with `made` between its two marks. Raises SettingError where they are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SettingError(f"the README needs the two lines {BEGIN} and {END}: put them back")
    return f"{before}{BEGIN}\n\n{made}\n{END}{after}"


def write_table(readme: Path = README, places: Iterable[Path] = PLACES) -> int:
    """Write the table into `readme`; the number of its rows."""
    verdicts = [one for run in read_kept(places) for one in run.verdicts]
    text = readme.read_text(encoding="utf-8")
    readme.write_text(with_table(text, table(verdicts)), encoding="utf-8")
    return len(newest(verdicts))
