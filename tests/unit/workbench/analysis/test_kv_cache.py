"""Waste of three allocations of a KV cache, worked out by hand for two requests."""

from __future__ import annotations

import pytest
from support.records import failed, record

from workbench.analysis.kv_cache import (
    KvCacheWaste,
    cache_at,
    kv_cache_frame,
    kv_cache_summary,
    kv_cache_waste,
    request_lengths,
)
from workbench.errors import SettingError
from workbench.figures.engine import kv_cache_figure, waste_figure

TWO = [(2, 2), (3, 1)]


def test_waste_worked_out_by_hand() -> None:
    """(2, 2) has 3 and then 4 tokens, (3, 1) has 4: 11 token-steps with a token.

    Contiguous: 2 steps and 1 step of 8. Padded: both rows 3 + 1 and then 3 + 2. Paged in twos:
    4 and 4 for the first, 4 for the second.
    """
    wastes = kv_cache_waste(TWO, reserve=8, batch=2, block=2)
    assert [(waste.held, waste.used) for waste in wastes] == [(24, 11), (18, 11), (12, 11)]
    assert [waste.share for waste in wastes] == pytest.approx([13 / 24, 7 / 18, 1 / 12])
    assert wastes[2].allocation == "paged, blocks of 2"


def test_batches_of_one_pad_nothing_and_blocks_of_one_waste_nothing() -> None:
    _, padded, paged = kv_cache_waste(TWO, reserve=8, batch=1, block=1)
    assert padded.share == paged.share == 0


def test_equal_lengths_pad_nothing() -> None:
    assert kv_cache_waste([(5, 7)] * 4, reserve=12, batch=4, block=4)[1].share == 0


def test_invalid_lengths() -> None:
    with pytest.raises(SettingError, match="lengths is empty"):
        kv_cache_waste([], reserve=8, batch=1, block=1)
    with pytest.raises(SettingError, match=r"at least 4 .* got 3"):
        kv_cache_waste(TWO, reserve=3, batch=1, block=1)


def test_lengths_are_in_the_order_of_sending() -> None:
    late = record(2.0, 2.1, prompt_tokens=7)
    early = record(1.0, 2.2, 2.3, prompt_tokens=9)
    assert request_lengths([late, early, failed("error")]) == [(9, 2), (7, 1)]


def test_cache_content_at_a_moment() -> None:
    """A request of 10 prompt tokens, answered at 1, 2 and 3 s; one of 3, at 2.5 s alone."""
    first = record(0.0, 1.0, 2.0, 3.0, prompt_tokens=10)
    second = record(0.0, 2.5, prompt_tokens=3)
    found = cache_at([first, second, failed("error")], [0.5, 1.0, 2.4, 3.0], block=4)
    assert found.requests.tolist() == [0, 1, 1, 0]
    assert found.tokens.tolist() == [0, 11, 12, 0], "the last token ends it"
    assert found.slots.tolist() == [0, 12, 12, 0]


def test_summary_in_one_line() -> None:
    frame = cache_at([record(0.0, 1.0, 3.0, prompt_tokens=7)], [1.5, 2.0], block=4)
    frame["reported"] = [8.0, 16.0]
    text = kv_cache_summary(frame)
    assert text.startswith("over 2 samples the engine reports 1.50 times the slots")
    assert text.endswith("33% of what it holds is empty")
    assert "reported no cache usage" in kv_cache_summary(frame.iloc[:0])
    assert "reported no cache usage" in kv_cache_summary(kv_cache_frame(None, None))  # type: ignore[arg-type]


def test_figures_show_each_allocation_and_each_count() -> None:
    bars = waste_figure([KvCacheWaste("a", 4, 2), KvCacheWaste("b", 4, 3)]).data[0]
    assert list(bars.text) == ["50.0%", "25.0%"]
    frame = cache_at([record(0.0, 1.0, 3.0, prompt_tokens=7)], [1.5], block=4)
    frame["reported"] = [8.0]
    lines = {trace.name: list(trace.y) for trace in kv_cache_figure(frame, 100).data}
    assert lines == {
        "Contiguous, if reserved": [100],
        "Blocks held, from the requests": [8],
        "Tokens of the requests": [8],
        "Reported by the engine": [8.0],
    }
