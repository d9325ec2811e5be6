"""Where a request's time went: the stages by the server's clock, as a waterfall and as shares.

Frames are those of `Run.requests_frame`; only completed requests whose server told its stages
count. `elsewhere` is what the client saw and no stage accounts for: the network, the hops between
deployments, the client itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from serving.gateway.stages import STAGES
from workbench.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    health_of,
    styled,
    titled,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.metrics.health import ClientHealth

ELSEWHERE = "elsewhere"
COLOURS = {
    "authentication": GREY,
    "guardrail_in": VERMILLION,
    "route": PURPLE,
    "queue": ORANGE,
    "prefill": SKY,
    "decode": BLUE,
    "guardrail_out": "#882255",
    ELSEWHERE: GREEN,
}
PERCENTILES = (50, 99)


def stage_frame(requests: pd.DataFrame) -> pd.DataFrame:
    """A row a request: `model`, the ms in each stage (NaN where absent), `e2el_ms`, `elsewhere`.

    In a stream the guardrail looks at the answer while the model decodes, so `elsewhere` is the
    time from end to end without the other stages, and not less than 0.
    """
    import pandas as pd

    told = requests[(requests.status == "ok") & requests.stages.notna()]
    frame = pd.DataFrame(
        [{name: stages.get(name) for name in STAGES} for stages in told.stages],
        index=told.index,
        columns=list(STAGES),
    ).astype(float)
    frame.insert(0, "model", told.model)
    frame["e2el_ms"] = (told.end_s - told.sent_s) * 1e3
    alone = [name for name in STAGES if name != "guardrail_out"]
    frame[ELSEWHERE] = (frame.e2el_ms - frame[alone].fillna(0).sum(axis=1)).clip(lower=0)
    return frame


def stage_waterfall(
    requests: pd.DataFrame, *, health: ClientHealth | None = None, title: str = "Stages"
) -> go.Figure:
    """The median of each stage, one below the other, each from where the one before it ends.

    The guardrail's look at the answer begins with the decoding that it accompanies.
    """
    import plotly.graph_objects as go

    frame = stage_frame(requests)
    medians = frame[[*STAGES, ELSEWHERE]].median()
    names = [name for name in medians.index if not np.isnan(medians[name])]
    starts, at = [], 0.0
    for name in names:
        before = at - medians["decode"] if name == "guardrail_out" and "decode" in names else at
        starts.append(max(0.0, before))
        at = at if name == "guardrail_out" else at + float(medians[name])
    bars = go.Bar(
        y=names,
        x=[round(float(medians[name]), 4) for name in names],
        base=[round(start, 4) for start in starts],
        orientation="h",
        marker={"color": [COLOURS[name] for name in names]},
        text=[f"{medians[name]:,.2f} ms" for name in names],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{text}<extra></extra>",
        showlegend=False,
    )
    figure = styled(go.Figure(bars), 120 + 34 * max(3, len(names)))
    figure.update_yaxes(autorange="reversed", title_text=None)
    figure.update_xaxes(title_text="ms since the request was sent", rangemode="tozero")
    return titled(
        figure, f"{title}: medians of {len(frame):,} requests", health or health_of(requests)
    )


def stage_shares(
    requests: pd.DataFrame, *, health: ClientHealth | None = None, title: str = "Stages"
) -> go.Figure:
    """What the time from end to end consists of, at its p50 and at its p99.

    Each bar is the mean of the requests nearest to that percentile: a twentieth of them, and one
    at least.
    """
    import plotly.graph_objects as go

    frame = stage_frame(requests)
    shares = shares_at(frame)
    labels = [f"p{p}<br>{shares.attrs['e2el_ms'][p]:,.0f} ms" for p in shares.index]
    figure = styled(go.Figure(), 380)
    for name in shares.columns:
        bar = go.Bar(
            x=labels,
            y=shares[name].round(5),
            name=name,
            marker={"color": COLOURS[name]},
            customdata=(shares[name] * 0 + shares.index).to_numpy(),
            hovertemplate=f"{name}: %{{y:.1%}} of p%{{customdata}}<extra></extra>",
        )
        figure.add_trace(bar)
    figure.update_layout(barmode="stack", bargap=0.5)
    figure.update_yaxes(title_text="share of the time", tickformat=".0%", range=[0, 1])
    return titled(figure, f"{title}: shares of p50 and p99", health or health_of(requests))


def shares_at(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a percentile of `stage_frame`: each stage's share of the time; a row adds up to 1."""
    import pandas as pd

    ordered = frame.dropna(subset=["e2el_ms"]).sort_values("e2el_ms").reset_index(drop=True)
    rows, times = {}, {}
    for percentile in PERCENTILES if len(ordered) else ():
        near = max(1, round(len(ordered) / 20))
        middle = round(percentile / 100 * (len(ordered) - 1))
        first = int(np.clip(middle - near // 2, 0, len(ordered) - near))
        chosen = ordered.iloc[first : first + near]
        means = chosen[[*STAGES, ELSEWHERE]].fillna(0).mean()
        rows[percentile] = means / max(float(means.sum()), 1e-9)
        times[percentile] = float(chosen.e2el_ms.mean())
    shares = pd.DataFrame.from_dict(rows, orient="index", columns=[*STAGES, ELSEWHERE])
    shares.attrs["e2el_ms"] = times
    return shares.loc[:, (shares > 0).any()]
