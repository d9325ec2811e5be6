"""Runs of split and colocated replicas, made by hand, compared in a table, a figure and words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.records import failed, record

from workbench.analysis.disaggregation import (
    disaggregation_frame,
    disaggregation_lines,
    disaggregation_table,
)
from workbench.figures.layouts import disaggregation_figure
from workbench.metrics.health import ClientHealth
from workbench.metrics.summary import summarize
from workbench.records import ReplicaSample
from workbench.runs.run import Run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


FINE = ClientHealth.judge(cpu_share=0.1)


def run_of(
    root: Path,
    variant: str,
    *,
    rate: float = 1,
    repeat: int = 1,
    ttft_s: float = 0.5,
    step_s: float = 0.0,
    tpot_s: float = 0.25,
    bad: Sequence[str] = (),
    transfers: Sequence[tuple[int, float, int]] = (),
    health: ClientHealth = FINE,
) -> Run:
    """A finished run of 20 requests with four tokens each, and one failed request per status.

    The TTFT of each request is `step_s` longer than that of the one before.
    """
    facts = {"variant": variant, "rate": rate, "repeat": repeat}
    run = Run.create(root, facts, run_id=f"{variant}-at-{rate:g}-{repeat}")
    for number in range(20):
        times = [number + ttft_s + step_s * number + tpot_s * token for token in range(4)]
        run.append_request(record(float(number), *times, request_id=f"{number}"))
    for status in bad:
        run.append_request(failed(status, 3.0, 4.0))
    for count, seconds, size in transfers:
        run.append_telemetry(
            ReplicaSample(
                time_s=float(count),
                deployment="m",
                replica="a",
                node="n",
                prompt_tokens=1,
                kv_transfers=count,
                kv_transfer_s=seconds,
                kv_transfer_bytes=size,
            )
        )
    run.finish(summarize(run.records(), health=health))
    return run


def repeated(root: Path, variant: str, ttfts_s: Sequence[float], **fields: Any) -> list[Run]:
    """One run per TTFT, the last repeat first."""
    runs = [
        run_of(root, variant, repeat=number, ttft_s=ttft_s, **fields)
        for number, ttft_s in enumerate(ttfts_s, 1)
    ]
    return runs[::-1]


def test_pairs_of_the_same_repeat_have_a_ratio_and_an_interval(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    runs = repeated(tmp_path, "split", [0.75, 1.5, 3.0], tpot_s=0.125)
    runs += repeated(tmp_path, "colocated", [0.5, 1.0, 2.0], tpot_s=0.25)
    frame = disaggregation_frame(runs, rng=rng).set_index("figure")
    ttft, tpot = frame.loc["p95_ttft_ms"], frame.loc["p50_tpot_ms"]
    # Within each pair the ratio is 1.5 exactly, so the interval has no width.
    assert [ttft.ratio, ttft.low, ttft.high] == pytest.approx([1.5] * 3)
    assert ttft.split == pytest.approx(1750.0)
    assert (ttft.repeats, ttft.verdict) == (3, "worse")
    assert (tpot.split, tpot.colocated) == pytest.approx((125.0, 250.0))
    assert (tpot.ratio, tpot.verdict) == (pytest.approx(0.5), "better")
    text = "\n".join(disaggregation_lines(frame.reset_index()))
    assert "p95 TTFT was 1.75 s with split replicas and 1.17 s with colocated ones" in text
    assert "(ratio 1.5, interval 1.5 to 1.5; worse)" in text
    assert "p95 TPOT was 125 ms with split replicas and 250 ms with colocated ones" in text


def test_one_repeat_has_a_ratio_and_no_interval(tmp_path: Path, rng: np.random.Generator) -> None:
    runs = [run_of(tmp_path, "colocated"), run_of(tmp_path, "split", ttft_s=1.0)]
    lines = disaggregation_lines(disaggregation_frame(runs, rng=rng))
    assert any("(ratio 2; too few repeats: 1 of 3)" in line for line in lines)
    assert not any("interval" in line for line in lines)


def test_failures_and_transfers_are_in_the_table_and_the_words(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    moved = [(10, 1.0, 0), (14, 1.5, 8 * 2**20)]  # 4 transfers in 0.5 s, with 8 MiB together
    runs = [
        run_of(tmp_path, "split", bad=["error", "timeout", "shed"], transfers=moved),
        run_of(tmp_path, "colocated"),
    ]
    frame = disaggregation_frame(runs, rng=rng)
    table = disaggregation_table(frame)
    at = table.loc["1 requests/s"]
    assert list(at.index[:3]) == ["Completed", "Failed", "Shed"]
    assert at.loc["Completed", ["colocated", "split"]].tolist() == ["20", "20"]
    assert at.loc["Failed", ["colocated", "split"]].tolist() == ["0", "2"]
    assert at.loc["Shed", ["colocated", "split"]].tolist() == ["0", "1"]
    assert at.loc["Mean time of a KV transfer", ["colocated", "split"]].tolist() == ["-", "125 ms"]
    assert at.loc["Mean size of a KV transfer", ["split", "verdict"]].tolist() == [
        "2 MiB",
        "only split transfers",
    ]
    assert "nan" not in table.to_html().lower()
    lines = disaggregation_lines(frame)
    assert "a KV transfer took 125 ms and moved 2 MiB on average" in lines[-1]
    assert any("per load: 3 with split replicas, 0 with colocated" in x for x in lines)


def test_a_connector_without_reports_and_a_limited_client_are_named(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    limited = ClientHealth.judge(cpu_share=0.97)
    runs = [run_of(tmp_path, "split", health=limited), run_of(tmp_path, "colocated")]
    frame = disaggregation_frame(runs, rng=rng)
    *_, transfers, client = disaggregation_lines(frame)
    assert transfers == "At 1 requests/s, the connector reported no KV transfers."
    assert client.startswith("The client limited")
    assert "CLIENT LIMITED" in disaggregation_figure(frame).layout.title.text
    assert "nan" not in disaggregation_table(frame).to_html().lower()


def test_rates_without_both_variants_are_left_out(tmp_path: Path, rng: np.random.Generator) -> None:
    runs = [run_of(tmp_path, "split", rate=rate) for rate in (1, 2)]
    runs.append(run_of(tmp_path, "colocated", rate=1))
    assert set(disaggregation_frame(runs, rng=rng).rate) == {1.0}
    for few in ([], runs[:1]):
        frame = disaggregation_frame(few, rng=rng)
        assert frame.empty
        assert disaggregation_table(frame).empty
        assert not any(len(trace.x) for trace in disaggregation_figure(frame).data)
        assert disaggregation_lines(frame) == ["Disaggregated prefill and decode was not measured."]


def test_the_figure_has_a_line_for_each_latency_and_variant(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    runs = [
        run_of(tmp_path, variant, rate=rate, ttft_s=scale * rate, step_s=0.1, tpot_s=scale)
        for variant, scale in (("split", 0.5), ("colocated", 0.25))
        for rate in (2, 0.5)
    ]
    figure = disaggregation_figure(disaggregation_frame(runs, rng=rng))
    drawn = {(trace.name, trace.yaxis): trace for trace in figure.data}
    assert len(drawn) == 8
    ttft = drawn["p95, split", "y"]
    assert list(ttft.x) == [0.5, 2.0]
    # With linear interpolation, p50 of 20 steps of 100 ms is 9.5 of them, and p95 is 18.05.
    assert list(ttft.y) == pytest.approx([250.0 + 1805, 1000.0 + 1805])
    assert list(drawn["p50, split", "y"].y) == pytest.approx([250.0 + 950, 1000.0 + 950])
    assert list(drawn["p50, colocated", "y2"].y) == pytest.approx([250.0, 250.0])
    assert figure.layout.yaxis.title.text == "TTFT (ms)"
