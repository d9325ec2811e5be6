"""The engine's own account of its KV cache beside what the requests explain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.engine.stats import CACHE_METRIC
from workbench.analysis.kv_cache import Waste, cache_at
from workbench.figures.style import BLUE, GREEN, GREY, ORANGE, VERMILLION, styled, titled
from workbench.telemetry.scrape import alive

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.endpoints.deployed import Endpoint
    from workbench.runs.run import Run

NULL_BLOCKS = 1  # vLLM keeps one block that nobody gets


@dataclass(frozen=True)
class CacheSize:
    """An engine's KV cache: its blocks, and the tokens of each."""

    blocks: int
    block: int

    @property
    def slots(self) -> int:
        """Tokens that it holds."""
        return self.blocks * self.block


def cache_size(endpoint: Endpoint) -> CacheSize | None:
    """The engine's cache, from the nodes' metrics; None where no node tells of one.

    All replicas of a deployment have the same. Another model's engine on the same cluster tells of
    its own: only lines of this endpoint's first deployment count.
    """
    import httpx
    import ray
    from prometheus_client.parser import text_string_to_metric_families

    for node in alive(ray.nodes()):
        try:
            text = httpx.get(node.url, timeout=10, trust_env=False).content
        except httpx.HTTPError:
            continue
        lines = [one for one in text.decode().splitlines() if f"{CACHE_METRIC}{{" in one]
        for family in text_string_to_metric_families("\n".join([*lines, ""])):
            for sample in family.samples:
                if sample.labels.get("deployment") == endpoint.deployment:
                    return CacheSize(int(sample.value), int(sample.labels["block_size"]))
    return None


def engine_account(run: Run, size: CacheSize | None) -> pd.DataFrame:
    """Each sample of the engine beside the client's own count at that moment.

    Columns: `time_s`, the requests, tokens and slots of `cache_at`, `reported` (slots in use by
    the engine's account) and `running` (requests in its batch). Samples of an idle engine are left
    out. Empty where the run has no samples of an engine, or its cache's size is not known.
    """
    if size is None:
        return cache_at([], [], 1).assign(reported=[], running=[])
    samples = run.samples("replica").dropna(subset=["kv_cache_usage"])
    samples = samples[samples.running_requests.astype(float) > 0]
    frame = cache_at(list(run.records()), samples.time_s.tolist(), size.block)
    usable = (size.blocks - NULL_BLOCKS) * size.block
    frame["reported"] = (samples.kv_cache_usage.to_numpy(float) * usable).round()
    frame["running"] = samples.running_requests.to_numpy(float)
    return frame


def account_told(frame: pd.DataFrame) -> str:
    """How well the two agree, in a line; the samples of a run are its busy seconds."""
    both = frame[(frame.slots > 0) & (frame.reported > 0)]
    if both.empty:
        return "The engine gave no account of its cache while requests were at work."
    ratio = float((both.reported.sum()) / both.slots.sum())
    empty = 1 - both.tokens.sum() / both.reported.sum()
    return (
        f"over {len(both)} samples the engine reports {ratio:.2f} times the slots that the "
        f"requests explain; {empty:.0%} of what it holds is empty"
    )


def waste_figure(found: list[Waste]) -> go.Figure:
    """The share of held memory that is empty, a bar for each way of giving it out."""
    import plotly.graph_objects as go

    shares = [one.share for one in found]
    bars = go.Bar(
        x=shares,
        y=[one.way for one in found],
        orientation="h",
        marker={"color": [VERMILLION, ORANGE, GREEN][: len(found)]},
        text=[f"{share:.1%}" for share in shares],
        textposition="auto",
        hovertemplate="%{y}: %{text} of what is held is empty<extra></extra>",
    )
    figure = styled(go.Figure(bars), 260)
    figure.update_xaxes(tickformat=".0%", range=[0, 1], title_text="held and empty")
    figure.update_yaxes(autorange="reversed")
    return titled(figure, "Waste of the KV cache, from the same requests", _plain(), None)


def account_figure(frame: pd.DataFrame, reserve: int) -> go.Figure:
    """Slots over time: reported by the engine, explained by the requests, and if `reserve` each."""
    import plotly.graph_objects as go

    figure = styled(go.Figure(), 340)
    lines = [
        ("contiguous, if reserved", frame.requests * reserve, GREY, "dot"),
        ("held by blocks, from the requests", frame.slots, GREEN, "solid"),
        ("tokens of the requests", frame.tokens, BLUE, "solid"),
        ("reported by the engine", frame.reported, ORANGE, "dash"),
    ]
    for name, values, colour, dash in lines:
        line = {"color": colour, "dash": dash, "width": 2}
        figure.add_trace(
            go.Scatter(x=frame.time_s, y=values, name=name, line=line, mode="lines+markers")
        )
    figure.update_xaxes(title_text="time since the start of the load (s)")
    figure.update_yaxes(title_text="slots of the KV cache", rangemode="tozero")
    return titled(figure, "The engine's own account", _plain(), None)


def _plain() -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame()
