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
from workbench.figures.style import page_div
from workbench.metrics.health import ClientHealth
from workbench.metrics.summary import Summary
from workbench.plotly_script import script_for
from workbench.quantities import NONE, quantity, significant
from workbench.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jinja2 import Template

    from workbench.claims.claim import Verdict

TableRows = list[tuple[str, str]]


_TILES = (
    ("SLO attainment", "slo_attainment", "share"),
    ("TTFT p99", "p99_ttft_ms", "ms"),
    ("TTFT p50", "p50_ttft_ms", "ms"),
    ("Requests per second", "request_throughput", ""),
    ("Output tokens per second", "output_throughput", ""),
)


def write_report(
    run: Run,
    figures: Mapping[str, go.Figure],
    *,
    title: str,
    command: str | None = None,
    tables: Mapping[str, pd.DataFrame] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Path:
    """Write `report.html` into the run's folder and return its path.

    Args:
        run: The run. If it has no summary yet, it is summarized here.
        figures: Figures by name.
        title: The title of the page.
        command: The command that repeats the run. Secrets in it are not shown.
        tables: Further tables by heading.
        defaults: The default values of the run's parameters. Those that differ are shown first.
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
        tables=tables,
        defaults=redact(dict(defaults or {})),
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
    tables: Mapping[str, pd.DataFrame] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> str:
    """Return the page as HTML.

    Args:
        document: The content of `experiment.json`.
        summary: The summary of the run.
        figures: Figures by name.
        title: The title of the page.
        command: The command that repeats the run.
        verdicts: The verdicts on claims.
        tables: Further tables by heading.
        defaults: The default values of the run's parameters.
    """
    table = summary.table(from_schedule=True)
    health = summary.client_health
    return _template("report.html.jinja").render(
        title=title,
        run_id=document["run_id"],
        date=document["date"],
        seed=document["seed"],
        limited="; ".join(health.reasons) if health.client_limited else "",
        script=script_for(figures.values()) if figures else "",
        tiles=list(_tiles(summary)),
        changed=_changed(document["experiment"].get("parameters"), defaults),
        story=_story(summary),
        headline=summary.headline(),
        tables={name: _table(table) for name, table in (tables or {}).items()},
        claims=[(f"{v.claim.name} against {v.opponent}", _verdict_text(v)) for v in verdicts],
        unit=table.columns.name,
        columns=list(table.columns),
        latency=[
            (name, [significant(v) for v in row])
            for name, row in zip(table.index, table.values, strict=True)
        ],
        side=[
            ("Checks", _checks(summary)),
            ("Requests", _counts(summary)),
            *_workload(summary),
            *_groups(summary),
        ],
        figures=[(name, page_div(figure)) for name, figure in figures.items()],
        command=command,
        below=[
            ("Parameters", list(_flat(document["experiment"]))),
            ("Hardware", list(_flat(document["hardware"]))),
            ("Versions", list(_flat(document["versions"]))),
        ],
    )


def _tiles(summary: Summary) -> Iterator[tuple[str, str, str]]:
    """Yield label, value and state ("good", "bad" or "") of each tile."""
    counts = f"{summary.completed:,} / {summary.failed:,} / {summary.shed:,}"
    yield "Completed / failed / shed", counts, "bad" if summary.failed else ""
    for label, figure, unit in _TILES:
        value = summary.figure(figure)
        if value is not None:
            yield label, quantity(value, unit), _state(summary, figure, value)


def _state(summary: Summary, figure: str, value: float) -> str:
    """Return whether a figure keeps the SLO: "good", "bad", or "" without a bound."""
    if summary.slo is None or figure == "p50_ttft_ms":
        return ""
    if figure == "slo_attainment":
        return "good" if value >= summary.slo.target else "bad"
    bound = summary.slo.bounds().get("ttft_ms") if figure == "p99_ttft_ms" else None
    return "" if bound is None else "good" if value <= bound else "bad"


def _story(summary: Summary) -> str:
    """Return what happened, in a sentence for each part."""
    total = summary.completed + summary.failed + summary.shed
    parts = [
        f"{total:,} requests ended in {quantity(summary.duration, 's')}: {summary.completed:,} "
        f"completed, {summary.failed:,} failed and {summary.shed:,} were shed."
    ]
    if summary.slo is not None and summary.slo_attainment is not None:
        word = "met" if summary.slo_met else "missed"
        parts.append(
            f"{quantity(summary.slo_attainment, 'share')} of them were within the SLO, so its "
            f"target of {quantity(summary.slo.target, 'share')} was {word}."
        )
    if summary.steady is False:
        parts.append("The latency was not steady: the last third differs from the first.")
    return " ".join(parts)


def _changed(
    parameters: Mapping[str, Any] | None, defaults: Mapping[str, Any] | None
) -> TableRows | None:
    """Return the parameters that differ from their defaults; None if the defaults are unknown."""
    if not defaults or parameters is None:
        return None
    hidden = {"run_root", "run_id", "live"}
    return [
        (name, f"{_plain(value)} (default {_plain(defaults[name])})")
        for name, value in parameters.items()
        if name in defaults and name not in hidden and value != defaults[name]
    ]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _table(table: pd.DataFrame) -> str:
    html: str = table.to_html(float_format=significant, na_rep=NONE, border=0)
    return html


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
        (name.replace("_", " ").capitalize(), significant(value) + units[name])
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
        script=script_for(figures) if figures else "",
        tables={name: _table(table) for name, table in tables.items()},
        figures=[page_div(figure) for figure in figures],
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
