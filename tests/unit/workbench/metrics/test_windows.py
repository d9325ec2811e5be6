"""Rolling windows, compared with a brute-force count over all records."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.records import failed, record

from workbench.metrics.windows import ROLL_S, RequestWindows, request_windows
from workbench.records import RequestRecord

times = st.floats(0, 20).map(lambda at: round(at, 3))
gaps = st.floats(0.001, 3).map(lambda gap: round(gap, 3))


@st.composite
def requests(draw: Callable[..., Any]) -> RequestRecord:
    sent, wait, gap = draw(times), draw(gaps), draw(gaps)
    status = draw(st.sampled_from(["ok", "ok", "ok", "error", "timeout", "shed", "cancelled"]))
    if status != "ok":
        return failed(status, sent, sent + wait)
    return record(sent, *(sent + wait + gap * token for token in range(3)))


def brute_force(records: list[RequestRecord], at: int) -> dict[str, float]:
    """The row at second `at`, by its definition."""
    span = min(at, ROLL_S)
    recent = [r for r in records if r.end_s is not None and at - span <= r.end_s < at]
    ok = [r for r in recent if r.status == "ok"]
    ttft = [((r.first_token_s or 0) - (r.sent_s or 0)) * 1e3 for r in ok]
    itl = [
        (b - a) * 1e3
        for r in ok
        for a, b in zip(r.token_times_s, r.token_times_s[1:], strict=False)
    ]
    open_now = [r for r in records if (r.sent_s or 0) < at <= (r.end_s or 0)]
    row = {
        "achieved": len(ok) / span,
        "failed": sum(r.status in ("error", "timeout") for r in recent) / span,
        "shed": sum(r.status == "shed" for r in recent) / span,
        "sent": sum(at - span <= (r.sent_s or 0) < at for r in records) / span,
        "in_flight": len(open_now),
    }
    for name, values in (("ttft", ttft), ("itl", itl)):
        for rank in (50, 99):
            percentile = float(np.percentile(values, rank)) if values else math.nan
            row[f"{name}_p{rank}_ms"] = percentile
    return row


@settings(max_examples=60)
@given(st.lists(requests(), max_size=25))
def test_rows_agree_with_their_definition(records: list[RequestRecord]) -> None:
    frame = request_windows(records)
    for row in frame.to_dict("records"):
        expected = brute_force(records, int(row["time_s"]))
        assert {name: row[name] for name in expected} == pytest.approx(expected, nan_ok=True)


@settings(max_examples=40)
@given(st.lists(requests(), max_size=25), st.floats(0.1, 3))
def test_live_rows_are_those_of_the_whole_run(records: list[RequestRecord], step_s: float) -> None:
    live, now = RequestWindows(), 0.0
    events = sorted(
        [(r.sent_s or 0.0, 0, r) for r in records] + [(r.end_s or 0.0, 1, r) for r in records],
        key=lambda event: event[:2],
    )
    while events or now < 30:
        now += step_s
        while events and events[0][0] < now:
            at, ended, request = events.pop(0)
            live.ended(request) if ended else live.sent(at)
        live.close(now)
    whole = request_windows(records, until_s=math.floor(now))
    pd.testing.assert_frame_equal(live.frame(), whole)


def test_a_late_report_is_counted() -> None:
    windows = RequestWindows()
    windows.sent(0.5)
    assert windows.close(3.0) == 3
    windows.ended(record(0.5, 1.0, 1.5))  # its second is closed
    windows.close(5.0)
    frame = windows.frame()
    assert frame.in_flight.tolist() == [1, 1, 1, 0, 0]
    assert frame.achieved.iloc[-1] == pytest.approx(1 / 5)


def test_old_rows_are_dropped() -> None:
    windows = RequestWindows(keep=10)
    assert windows.close(100.0) == 100
    assert windows.frame().time_s.tolist() == list(range(91, 101))
