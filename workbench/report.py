"""One self-contained HTML page for a run: it needs no network and no other file to be read.

All text of the run is escaped, and the page forbids itself any connection.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.claims.claim import FILE, read_verdicts
from workbench.metrics.health import ClientHealth
from workbench.metrics.summary import Summary
from workbench.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.claims.claim import Verdict

Rows = list[tuple[str, str]]

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 2em auto; padding: 0 20px; }
h1 { margin-bottom: 0; }
h2 { margin: 1.6em 0 .4em; }
table { border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; padding: 3px 18px 3px 0; }
td { border-top: 1px solid #8884; overflow-wrap: anywhere; }
th { font-weight: 600; white-space: nowrap; }
.figures td + td, .figures th + th { text-align: right; font-variant-numeric: tabular-nums; }
.columns { display: flex; flex-wrap: wrap; gap: 0 60px; }
.bad { color: #D55E00; font-weight: 600; }
pre { border: 1px solid #8886; padding: 10px; white-space: pre-wrap; }
.quiet { opacity: .75; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="quiet">run {{ run_id }}, {{ date }}
{%- if seed is not none %}, seed {{ seed }}{% endif %}</p>
{% if limited %}<p class="bad">CLIENT LIMITED: the client shaped these figures
 ({{ limited }}). Do not quote them without this mark.</p>{% endif %}
<p>{{ headline }}</p>

{% if claims %}<h2>Claims</h2>{{ table(claims) }}{% endif %}

<div class="columns">
<section><h2>Latency ({{ unit }})</h2>
<table class="figures">
<tr><th></th>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for name, values in latency %}<tr><td>{{ name }}</td>
{% for value in values %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table></section>
{% for name, rows in side %}<section><h2>{{ name }}</h2>{{ table(rows) }}</section>
{% endfor %}</div>

{% for name, figure in figures %}<section aria-label="{{ name }}">{{ figure | safe }}</section>
{% endfor %}

{% if command %}<h2>Repeat this run</h2><pre>{{ command }}</pre>{% endif %}
<div class="columns">
{% for name, rows in below %}<section><h2>{{ name }}</h2>{{ table(rows) }}</section>
{% endfor %}</div>

<h2>What the figures mean</h2>
<p>TTFT is from the send to the first token, E2EL to the end, ITL the gaps between the tokens of a
request, TPOT (E2EL - TTFT) / (output tokens - 1): the definitions of vLLM's own benchmark. «From
schedule» counts from when a request was due, so that a late client cannot hide queueing. Only
completed requests have latencies; failed and shed ones count against the SLO.</p>
</body>
</html>
"""
_TABLE = """<table>
{% for name, value in rows %}<tr><td>{{ name }}</td>
<td{% if value.split(":")[0] in ("NO", "FAIL") %} class="bad"{% endif %}>{{ value }}</td></tr>
{% endfor %}</table>"""


def write_report(
    run: Run, figures: Mapping[str, go.Figure], *, title: str, command: str | None = None
) -> Path:
    """Write `report.html` into the run's folder and return its path.

    `command` is what repeats the run, shown as given. A run without a summary is summarized here.
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
    part = page.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(page)
    return page


def render_page(
    document: Mapping[str, Any],
    summary: Summary,
    figures: Mapping[str, go.Figure],
    *,
    title: str,
    command: str | None = None,
    verdicts: Iterable[Verdict] = (),
) -> str:
    """The page as text. `document` is what `experiment.json` holds."""
    from jinja2 import Environment
    from markupsafe import Markup

    from workbench.figures.style import to_div

    environment = Environment(autoescape=True)
    small = environment.from_string(_TABLE)
    table = summary.table(from_schedule=True)
    health = summary.client_health
    drawn = [(n, to_div(f, with_script=not i)) for i, (n, f) in enumerate(figures.items())]
    return environment.from_string(_PAGE).render(
        title=title,
        run_id=document["run_id"],
        date=document["date"],
        seed=document["seed"],
        limited="; ".join(health.reasons) if health.client_limited else "",
        headline=summary.headline(),
        claims=[(f"{one.claim.name} against {one.opponent}", _said(one)) for one in verdicts],
        unit=table.columns.name,
        columns=list(table.columns),
        latency=[
            (name, [_number(v) for v in row])
            for name, row in zip(table.index, table.values, strict=True)
        ],
        side=[("Verdicts", _verdicts(summary)), ("Requests", _counts(summary)), *_groups(summary)],
        figures=drawn,
        command=command,
        below=[
            ("Parameters", list(_flat(document["experiment"]))),
            ("Hardware", list(_flat(document["hardware"]))),
            ("Versions", list(_flat(document["versions"]))),
        ],
        table=lambda rows: Markup(small.render(rows=rows)),
    )


def _said(verdict: Verdict) -> str:
    return "; ".join((f"{verdict.verdict}: {verdict.reason}", *verdict.notes))


def _verdicts(summary: Summary) -> Rows:
    rows = _health(summary.client_health)
    if summary.slo is not None:
        bounds = ", ".join(f"{n} ≤ {v:g}" for n, v in summary.slo.bounds().items())
        share = "-" if summary.slo_attainment is None else f"{summary.slo_attainment:.2%}"
        rows.append(
            ("SLO met", f"{_yes(summary.slo_met)}: {share} of {summary.slo.target:.0%} wanted")
        )
        rows.append(("SLO bounds (ms)", bounds))
    if summary.steady is not None:
        drift = f"median E2EL of the last third is {summary.drift:.2f} of the first's"
        rows.append(("steady state", f"{_yes(summary.steady)}: {drift}"))
    return rows


def _health(health: ClientHealth) -> Rows:
    kept_up = None if health.client_limited is None else not health.client_limited
    rows = [("client kept up", _yes(kept_up))]
    for name, bound in health.bounds.model_dump().items():
        value = getattr(health, name)
        if value is not None:
            rows.append((name.replace("_", " "), f"{value:.3g} (bound {bound:g})"))
    return rows


def _counts(summary: Summary) -> Rows:
    units = dict.fromkeys(("completed", "failed", "shed", "cancelled"), "") | {"duration": " s"}
    rates = ("request_throughput", "output_throughput", "total_token_throughput")
    units |= dict.fromkeys((*rates, "request_goodput"), " /s")
    found = [(name, summary.figure(name), unit) for name, unit in units.items()]
    return [(name.replace("_", " "), _number(v) + unit) for name, v, unit in found if v is not None]


def _groups(summary: Summary) -> Iterator[tuple[str, Rows]]:
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
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:,.3g}"
        if value < 100
        else f"{value:,.0f}"
    )


def _yes(verdict: bool | None) -> str:
    return "not measured" if verdict is None else "yes" if verdict else "NO"


_COMPARISON_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 2em auto; padding: 0; }}
table {{ border-collapse: collapse; border: 0; display: block; overflow-x: auto; }}
th, td {{ border: 0; border-top: 1px solid #8884; padding: 3px 14px 3px 0; text-align: left; }}
</style></head>
<body>{body}</body></html>
"""


def write_page(
    path: str | Path, figures: Sequence[go.Figure], tables: Mapping[str, pd.DataFrame], title: str
) -> Path:
    """One self-contained HTML page of headed tables and figures; it needs no network."""
    from workbench.figures.style import to_div

    drawn = [to_div(figure, with_script=not i) for i, figure in enumerate(figures)]
    rows = [
        f"<h2>{html.escape(name)}</h2>{table.to_html(float_format='{:.4g}'.format, na_rep='-')}"
        for name, table in tables.items()
    ]
    page = Path(path)
    part = page.with_suffix(".part")
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *rows, *drawn])
    part.write_text(_COMPARISON_PAGE.format(title=html.escape(title), body=body), encoding="utf-8")
    return part.replace(page)
