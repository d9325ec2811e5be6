"""Good requests by the definition of each bound, one request at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.records import failed, record

from workbench.errors import UnknownMetricError
from workbench.metrics.columns import Columns
from workbench.metrics.slo import SLO
from workbench.metrics.summary import summarize
from workbench.records import RequestRecord

times = st.floats(0, 20).map(lambda at: round(at, 3))
gaps = st.floats(0.001, 3).map(lambda gap: round(gap, 3))


@st.composite
def completed(draw: Callable[..., float]) -> RequestRecord:
    sent, wait, gap = draw(times), draw(gaps), draw(gaps)
    tokens = int(draw(st.integers(1, 4)))
    return record(
        sent, *(sent + wait + gap * token for token in range(tokens)), scheduled_s=sent - 0.25
    )


def is_good(request: RequestRecord, bounds: dict[str, float]) -> bool:
    """Whether a completed request meets `bounds`, computed from its record alone."""
    assert request.first_token_s is not None
    assert request.end_s is not None
    assert request.sent_s is not None
    assert request.scheduled_s is not None
    tokens = request.output_tokens or 0
    latencies_s = {
        "ttft_ms": request.first_token_s - request.sent_s,
        "e2el_ms": request.end_s - request.sent_s,
        "tpot_ms": (request.end_s - request.first_token_s) / (tokens - 1) if tokens > 1 else 0.0,
        "ttft_from_schedule_ms": request.first_token_s - request.scheduled_s,
        "e2el_from_schedule_ms": request.end_s - request.scheduled_s,
    }
    return all(latencies_s[name] <= bound / 1e3 for name, bound in bounds.items())


BOUNDS = ("ttft_ms", "tpot_ms", "e2el_ms", "ttft_from_schedule_ms", "e2el_from_schedule_ms")


@settings(max_examples=80)
@given(
    st.lists(completed(), max_size=10),
    st.dictionaries(st.sampled_from(BOUNDS), st.floats(1, 4000), min_size=1),
)
def test_good_requests_agree_with_the_definitions(
    records: list[RequestRecord], bounds: dict[str, float]
) -> None:
    good, judged = SLO(**bounds).count(Columns.read(records))
    assert good == sum(is_good(request, bounds) for request in records)
    assert judged == len(records)


def test_a_request_without_a_first_token_waited_until_its_end() -> None:
    cut_early, cut_late = failed("cancelled", 0.0, 0.2), failed("cancelled", 0.0, 0.4)
    columns = Columns.read([cut_early, cut_late])
    good, exceeded = SLO(ttft_ms=300).judge(columns)
    assert (good.tolist(), exceeded.tolist()) == ([False, False], [False, True])


def test_pooled_latencies_cannot_be_bounded() -> None:
    with pytest.raises(UnknownMetricError, match=r"SLO\.itl_ms"):
        SLO(itl_ms=50)


def test_bounds_of_a_saved_summary_are_read_back() -> None:
    slo = SLO(ttft_ms=5, e2el_from_schedule_ms=70, target=0.9)
    summary = summarize([record(0.0, 0.1)], slo=slo)
    assert type(summary).model_validate_json(summary.model_dump_json()).slo == slo
