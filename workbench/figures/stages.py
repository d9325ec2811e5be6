"""Where a request's time went: the stages by the server's clock, as a waterfall and as shares.

Frames are those of `Run.requests_frame()`. Only completed requests whose server reported its stages
count. `elsewhere` is the time that the client saw and no stage explains: the network, the hops
between deployments, and the client itself.
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
from workbench.quantities import SHARE_TICKS

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
_PERCENTILES = (50, 99)


def stage_frame(requests: pd.DataFrame) -> pd.DataFrame:
    """Return a row per request: `model`, the ms in each stage (NaN if absent), `e2el_ms`.

    The column `elsewhere` is the end-to-end time without the stages, at least 0. The guardrail
    checks a streamed answer while the model decodes, so its stage is not subtracted.
    """
    import pandas as pd

    known = requests[(requests.status == "ok") & requests.stages.notna()]
    frame = pd.DataFrame(
        [{name: stages.get(name) for name in STAGES} for stages in known.stages],
        index=known.index,
        columns=list(STAGES),
    ).astype(float)
    frame.insert(0, "model", known.model)
    frame["e2el_ms"] = known.e2el_ms
    sequential = [name for name in STAGES if name != "guardrail_out"]
    frame[ELSEWHERE] = (frame.e2el_ms - frame[sequential].fillna(0).sum(axis=1)).clip(lower=0)
    return frame


def stage_waterfall(
    requests: pd.DataFrame, *, health: ClientHealth | None = None, title: str = "Stages"
) -> go.Figure:
    """Draw the median of each stage in ms, each starting where the previous one ends.

    The guardrail's check of the answer starts together with the decoding.

    Args:
        requests: `Run.requests_frame()`.
        health: The client's health; by default the one that `requests` carries.
        title: The title.
    """
    import plotly.graph_objects as go

    frame = stage_frame(requests)
    medians = frame[[*STAGES, ELSEWHERE]].median().dropna()
    names = list(medians.index)
    bars = go.Bar(
        y=names,
        x=[round(float(medians[name]), 4) for name in names],
        base=[round(start, 4) for start in _starts(medians)],
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
    figure.update_xaxes(title_text="Time since the request was sent (ms)", rangemode="tozero")
    title = f"{title}: medians of {len(frame):,} requests"
    return titled(figure, title, health or health_of(requests))


def _starts(medians: pd.Series[float]) -> list[float]:
    starts, end = [], 0.0
    for name, median in medians.items():
        if name == "guardrail_out":
            starts.append(max(0.0, end - float(medians.get("decode", 0.0))))
        else:
            starts.append(end)
            end += float(median)
    return starts


def stage_shares(
    requests: pd.DataFrame, *, health: ClientHealth | None = None, title: str = "Stages"
) -> go.Figure:
    """Draw the share of each stage in the end-to-end time, at its p50 and its p99.

    Each bar is the mean of the requests nearest to the percentile: a twentieth of all, at least
    one.

    Args:
        requests: `Run.requests_frame()`.
        health: The client's health; by default the one that `requests` carries.
        title: The title.
    """
    import plotly.graph_objects as go

    shares = shares_at(stage_frame(requests))
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
    figure.update_yaxes(title_text="Share of the time", tickformat=SHARE_TICKS, range=[0, 1])
    return titled(figure, f"{title}: shares of p50 and p99", health or health_of(requests))


def shares_at(frame: pd.DataFrame) -> pd.DataFrame:
    """Return each stage's share of the time, a row per percentile; a row adds up to 1.

    `attrs["e2el_ms"]` has the end-to-end time in ms at each percentile.
    """
    import pandas as pd

    ordered = frame.dropna(subset=["e2el_ms"]).sort_values("e2el_ms").reset_index(drop=True)
    rows, times = {}, {}
    for percentile in _PERCENTILES if len(ordered) else ():
        count = max(1, round(len(ordered) / 20))
        middle = round(percentile / 100 * (len(ordered) - 1))
        first = int(np.clip(middle - count // 2, 0, len(ordered) - count))
        nearest = ordered.iloc[first : first + count]
        means = nearest[[*STAGES, ELSEWHERE]].fillna(0).mean()
        rows[percentile] = means / max(float(means.sum()), 1e-9)
        times[percentile] = float(nearest.e2el_ms.mean())
    shares = pd.DataFrame.from_dict(rows, orient="index", columns=[*STAGES, ELSEWHERE])
    shares.attrs["e2el_ms"] = times
    return shares.loc[:, (shares > 0).any()]
