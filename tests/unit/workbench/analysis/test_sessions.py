"""Turns of sessions, from records made by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from support.records import failed, record

from workbench.analysis.sessions import session_table, turn_table, turns_frame
from workbench.runs.run import Run


@pytest.fixture
def turns(tmp_path: Path) -> pd.DataFrame:
    """Two sessions of two turns, a failed turn, and a request of a live load."""
    run = Run.create(tmp_path, {})
    for number, turn, ttft_s, prompt, cached in (
        (10, 1, 0.2, 40, 32),
        (10, 0, 0.1, 16, 0),
        (2, 0, 0.3, 16, 16),
        (2, 1, 0.4, 40, None),
    ):
        identity = f"load-a1b2c3-{number}-{turn}"
        run.append_request(
            record(
                5.0, 5.0 + ttft_s, request_id=identity, prompt_tokens=prompt, cached_tokens=cached
            )
        )
    run.append_request(failed("shed", request_id="load-a1b2c3-10-2"))
    run.append_request(record(9.0, 9.5, request_id="load-a1b2c3-7"))
    return turns_frame(run.requests_frame())


def test_turns_are_in_order_and_others_left_out(turns: pd.DataFrame) -> None:
    sessions = [name.rpartition("-")[2] for name in turns.session]
    assert sessions == ["2", "2", "10", "10", "10"]
    assert turns.turn.tolist() == [0, 1, 0, 1, 2]
    assert turns.cached_share.tolist()[:1] == [1.0]
    assert turns.cached_share.isna().tolist() == [False, True, False, False, True]


def test_table_of_turns(turns: pd.DataFrame) -> None:
    table = turn_table(turns)
    assert table.index.tolist() == [0, 1, 2]
    assert table.requests.tolist() == [2, 2, 1]
    assert table.completed.tolist() == [2, 2, 0]
    assert table.ttft_p50_ms.tolist()[:2] == pytest.approx([200, 300])
    # 16 of 32 tokens; then 32 of 40, as the other request reports nothing.
    assert table.cached_share.tolist()[:2] == pytest.approx([0.5, 0.8])
    assert table.prompt_tokens.tolist()[:2] == [16, 40]


def test_table_of_sessions(turns: pd.DataFrame) -> None:
    table = session_table(turns)
    assert table.requests.to_dict() == {"load-a1b2c3-2": 2, "load-a1b2c3-10": 3}
    assert table.cached_share.to_dict() == pytest.approx(
        {"load-a1b2c3-2": 1.0, "load-a1b2c3-10": 32 / 56}
    )


def test_run_without_sessions(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {})
    run.append_request(record(9.0, 9.5, request_id="load-a1b2c3-7"))
    turns = turns_frame(run.requests_frame())
    assert turns.empty
    assert turn_table(turns).empty
