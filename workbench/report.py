"""A self-contained HTML page of a run, or of a comparison.

A page needs neither a network nor other files. All text is escaped, and the page's security policy
forbids connections.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.claims.claim import FILE, read_verdicts
from workbench.figures.style import to_div
from workbench.metrics.health import ClientHealth
from workbench.metrics.summary import Summary
from workbench.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jinja2 import Template

    from workbench.claims.claim import Verdict

TableRows = list[tuple[str, str]]


def write_report(
    run: Run, figures: Mapping[str, go.Figure], *, title: str, command: str | None = None
) -> Path:
    """Write `report.html` into the run's folder and return its path.

    Args:
        run: The run. If it has no summary yet, it is summarized here.
        figures: Figures by name.
        title: The title of the page.
        command: The command that repeats the run. Secrets in it are not shown.
    """
    from workbench.metrics.summary import summarize
    from workbench.runs.redact import redact

    page = run.path / "report.html"
    summary = run.summary() or summarize(run.records())
    text = render_page(
        run.document,
        summary,
        figures,
        title=title,
        command=redact(command),
        verdicts=read_verdicts(run.path) if (run.path / FILE).exists() else (),
    )
    return _write_whole(page, text)


def render_page(
    document: Mapping[str, Any],
    summary: Summary,
    figures: Mapping[str, go.Figure],
    *,
    title: str,
    command: str | None = None,
    verdicts: Iterable[Verdict] = (),
) -> str:
    """Return the page as HTML.

    Args:
        document: The content of `experiment.json`.
        summary: The summary of the run.
        figures: Figures by name.
        title: The title of the page.
        command: The command that repeats the run.
        verdicts: The verdicts on claims.
    """
    table = summary.table(from_schedule=True)
    health = summary.client_health
    divs = [(n, to_div(f, with_script=not i)) for i, (n, f) in enumerate(figures.items())]
    return _template("report.html.jinja").render(
        title=title,
        run_id=document["run_id"],
        date=document["date"],
        seed=document["seed"],
        limited="; ".join(health.reasons) if health.client_limited else "",
        headline=summary.headline(),
        claims=[(f"{v.claim.name} against {v.opponent}", _verdict_text(v)) for v in verdicts],
        unit=table.columns.name,
        columns=list(table.columns),
        latency=[
            (name, [_number(v) for v in row])
            for name, row in zip(table.index, table.values, strict=True)
        ],
        side=[
            ("Checks", _checks(summary)),
            ("Requests", _counts(summary)),
            *_workload(summary),
            *_groups(summary),
        ],
        figures=divs,
        command=command,
        below=[
            ("Parameters", list(_flat(document["experiment"]))),
            ("Hardware", list(_flat(document["hardware"]))),
            ("Versions", list(_flat(document["versions"]))),
        ],
    )


def _verdict_text(verdict: Verdict) -> str:
    return "; ".join((f"{verdict.verdict}: {verdict.reason}", *verdict.notes))


def _checks(summary: Summary) -> TableRows:
    rows = _health(summary.client_health)
    if summary.slo is not None:
        bounds = ", ".join(f"{n} ≤ {v:g}" for n, v in summary.slo.bounds().items())
        share = "-" if summary.slo_attainment is None else f"{summary.slo_attainment:.2%}"
        rows.append(
            ("SLO met", f"{_yes(summary.slo_met)}: {share} (target {summary.slo.target:.0%})")
        )
        rows.append(("SLO bounds (ms)", bounds))
    if summary.steady is not None:
        drift = f"median E2EL of the last third is {summary.drift:.2f} times the first"
        rows.append(("Steady state", f"{_yes(summary.steady)}: {drift}"))
    return rows


_HEALTH_LABELS = {
    "send_lag_p99_ms": "Send lag p99 (ms)",
    "loop_lag_p99_ms": "Event loop lag p99 (ms)",
    "cpu_share": "CPU share of a load worker",
}


def _health(health: ClientHealth) -> TableRows:
    kept_up = None if health.client_limited is None else not health.client_limited
    rows = [("Client kept up", _yes(kept_up))]
    for name, bound in health.bounds.model_dump().items():
        value = getattr(health, name)
        if value is not None:
            rows.append((_HEALTH_LABELS[name], f"{value:.3g} (limit {bound:g})"))
    return rows


def _counts(summary: Summary) -> TableRows:
    units = dict.fromkeys(("completed", "failed", "shed", "cancelled"), "") | {"duration": " s"}
    rates = ("request_throughput", "output_throughput", "total_token_throughput")
    units |= dict.fromkeys((*rates, "request_goodput"), "/s")
    values = {name: summary.figure(name) for name in units}
    return [
        (name.replace("_", " ").capitalize(), _number(value) + units[name])
        for name, value in values.items()
        if value is not None
    ]


def _workload(summary: Summary) -> Iterator[tuple[str, TableRows]]:
    if summary.workload:
        facts = {name: part for name, part in summary.workload.items() if name != "notes"}
        notes = [("Note", note) for note in summary.workload.get("notes", ())]
        yield "Workload", [*_flat(facts), *notes]


def _groups(summary: Summary) -> Iterator[tuple[str, TableRows]]:
    for name, groups in (("By model", summary.by_model), ("By tenant", summary.by_tenant)):
        if groups:
            yield name, [(group, part.headline()) for group, part in groups.items()]


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner if isinstance(inner, str) else json.dumps(inner)


def _number(value: float | None) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def _yes(verdict: bool | None) -> str:
    return "not measured" if verdict is None else "yes" if verdict else "NO"


def write_page(
    path: str | Path, figures: Sequence[go.Figure], tables: Mapping[str, pd.DataFrame], title: str
) -> Path:
    """Write a self-contained HTML page of tables and figures, and return its path.

    Args:
        path: The file to write.
        figures: The figures, in order.
        tables: Tables by heading.
        title: The title of the page.
    """
    text = _template("comparison.html.jinja").render(
        title=title,
        tables={
            name: table.to_html(float_format="{:.4g}".format, na_rep="-")
            for name, table in tables.items()
        },
        figures=[to_div(figure, with_script=not i) for i, figure in enumerate(figures)],
    )
    return _write_whole(Path(path), text)


def _template(name: str) -> Template:
    from jinja2 import Environment

    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return Environment(autoescape=True).from_string(text)


def _write_whole(page: Path, text: str) -> Path:
    part = page.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    return part.replace(page)
