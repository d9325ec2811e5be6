"""The points that a page gets, by messages and after a reload."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from workbench.dashboard.history import MAX_POINTS, RECENT_POINTS, History, Points


def points(start: int, stop: int, *, texts: bool = False) -> Points:
    times = np.arange(start, stop, dtype=float)
    return times, times * 2, [f"{time:g} s" for time in times] if texts else None


class Page:
    """What a page keeps: it takes messages in order, as `store.js` does."""

    def __init__(self, history: History) -> None:
        self.take(history.message())

    def take(self, message: dict[str, Any] | None) -> None:
        message = json.loads(json.dumps(message, allow_nan=False))
        if message is None:
            return
        if message["type"] == "history":
            self.number = message["history"]["number"]
            self.lines = message["history"]["lines"]
            return
        assert message["number"] == self.number + 1
        self.number = message["number"]
        for index, x, y, text in message["lines"]:
            line = self.lines[index]
            line["x"], line["y"] = line["x"] + x, line["y"] + y
            if text:
                line["text"] = line.get("text", []) + text


def test_page_that_follows_and_page_that_reloads_have_the_same_points() -> None:
    history = History(2)
    page = Page(history)
    for now in range(1, 300):
        window = (points(max(0, now - 60), now), points(max(0, now - 60), now, texts=True))
        page.take(history.extend(window))
    page.take(history.extend((points(240, 300), points(240, 300, texts=True)), final=True))
    assert page.lines == history.state()["lines"] == Page(history).lines
    assert page.lines[0]["x"] == list(range(300))
    assert page.lines[1]["text"][-1] == "299 s"


def test_newest_point_waits_for_samples_of_the_same_moment() -> None:
    history = History(1)
    times = np.array([0.0, 1.0])
    history.extend([(times, np.array([5.0, 1.0]), None)])
    assert history.lines[0].y == [5.0]
    times = np.array([0.0, 1.0, 2.0])  # another replica was sampled at 1 s
    history.extend([(times, np.array([5.0, 6.0, 1.0]), None)])
    assert history.lines[0].y == [5.0, 6.0]


def test_nothing_new_is_no_message_and_missing_values_are_null() -> None:
    history = History(1)
    first = (np.array([0.0, 1.0, 2.0]), np.array([1.0, np.nan, 3.0]), None)
    message = history.extend([first], final=True)
    assert message is not None
    assert message["lines"] == [[0, [0.0, 1.0, 2.0], [1.0, None, 3.0], []]]
    assert history.extend([first], final=True) is None


def test_line_is_broken_over_a_gap_longer_than_the_window() -> None:
    history = History(1)
    history.extend([points(0, 3)], final=True)
    history.extend([points(100, 103)], final=True)
    assert history.lines[0].x == [0, 1, 2, 98.25, 100, 101, 102]
    assert history.lines[0].y[3] is None


def test_size_is_limited_and_the_whole_run_and_recent_minutes_stay() -> None:
    history = History(1)
    page = Page(history)
    hours = 3 * 3600
    for now in range(20, hours + 1, 20):
        page.take(history.extend([points(max(0, now - 60), now, texts=True)], final=True))
        assert len(history.lines[0].x) <= MAX_POINTS
    line = history.lines[0]
    assert page.lines == [line.fields()]
    assert line.x[0] == 0
    assert line.x[-RECENT_POINTS:] == list(range(hours - RECENT_POINTS, hours))
    assert line.y == [2 * x for x in line.x]
    assert line.text == [f"{x:g} s" for x in line.x]
