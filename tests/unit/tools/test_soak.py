"""The analysis of the soak test, on records that were made up."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from support.paths import BENCHMARKS

sys.path.append(str(BENCHMARKS))

from _soak import (
    Fault,
    Request,
    Sample,
    figures,
    largest_roles,
    leftovers,
    memory_ratios,
    p99_drift,
    plot,
    unaffected,
)

END_S = 400.0


def request(
    sent_s: float, end_s: float | None = None, *, ok: bool = True, ttft: float = 0.1
) -> Request:
    end_s = sent_s + 1 if end_s is None else end_s
    return Request("direct", "stream", sent_s, sent_s + ttft, end_s, ok)


def sample(time_s: float, rss: int, role: str = "replica", processes: int = 1) -> Sample:
    return Sample(time_s, role, processes, rss, files=10, tasks=5, sockets=3)


@pytest.mark.parametrize(
    ("sent_s", "end_s", "counts"),
    [
        (90.0, 99.9, True),  # over before the fault
        (90.0, 100.0, False),  # in progress when it came
        (110.0, 111.0, False),
        (120.0, 125.0, False),  # sent when it ended
        (120.1, 121.0, True),
        (90.0, 300.0, False),  # from before until after
    ],
)
def test_a_fault_affects_what_is_in_progress_until_recovery(
    sent_s: float, end_s: float, counts: bool
) -> None:
    requests = [request(sent_s, end_s)]
    fault = Fault("proxy_killed", 100.0, 120.0)
    assert (unaffected(requests, [fault]) == requests) is counts


def test_a_fault_without_recovery_affects_everything_after_it() -> None:
    requests = [request(10.0), request(390.0)]
    assert unaffected(requests, [Fault("engine_killed", 100.0)]) == requests[:1]


def test_memory_is_that_of_one_process_at_the_end_over_the_first_quarter() -> None:
    samples = [
        sample(10.0, 1),  # the caches are not full yet
        sample(60.0, 200, processes=2),
        sample(90.0, 100),
        sample(200.0, 900),  # neither the start nor the end
        sample(390.0, 330, processes=2),
    ]
    assert memory_ratios(samples, END_S) == {"replica": 1.65}


def test_a_role_of_only_one_end_has_no_ratio() -> None:
    samples = [sample(60.0, 1, "old"), sample(390.0, 1, "new")]
    assert memory_ratios(samples, END_S) == {}


def test_levels_count_what_exceeds_the_start() -> None:
    before = [sample(0.0, 1), sample(0.0, 1, "proxy")]
    after = [
        replace(before[0], files=12, sockets=2),
        replace(before[1], files=9),
        sample(9.0, 1, "new"),
    ]
    assert leftovers(before, after, "files") == {"new": 10, "replica": 2}
    assert leftovers(before, after, "sockets") == {"new": 3}


def test_drift_compares_the_last_quarter_with_the_first() -> None:
    early = [request(float(n), ttft=0.1) for n in range(99)]
    late = [request(301.0 + n / 2, ttft=0.15) for n in range(99)]
    middle = [request(200.0, ttft=9.0)]
    assert p99_drift([*early, *middle, *late], END_S) == 1.5
    assert p99_drift([*early, *late[:5]], END_S) is None


def test_the_figures_separate_failures_in_a_fault_from_others() -> None:
    requests = [request(50.0), request(105.0, ok=False), request(200.0, ok=False), request(210.0)]
    faults = [
        Fault("proxy_killed", 100.0, 110.0),
        Fault("proxy_killed", 300.0, 304.0),
        Fault("engine_killed", 350.0),
    ]
    samples = [sample(60.0, 100), sample(390.0, 120)]
    idle = ([sample(0.0, 1)], [replace(sample(0.0, 1), tasks=7)])
    values = figures(requests, faults, samples, idle, END_S)
    assert values["requests"] == 4
    assert values["failed"] == 2
    assert values["failed_outside"] == 1
    assert values["memory_ratio"] == 1.2
    assert values["memory_ratio_role"] == "replica"
    assert values["tasks_left"] == 2
    assert values["tasks_left_roles"] == "replica: 2"
    assert values["files_left"] == 0
    assert values["recovered_s_proxy_killed"] == 10.0
    assert values["recovered_s_engine_killed"] is None
    assert values["not_recovered"] == 1


def test_the_plot_shows_paths_failures_memory_and_faults() -> None:
    samples = [sample(60.0, 2**30), sample(390.0, 2**31), sample(60.0, 1, "small")]
    requests = [request(50.0), request(105.0, ok=False)]
    figure = plot(requests, [Fault("proxy_killed", 100.0, 110.0)], samples)
    names = {trace.name: trace for trace in figure.data}
    assert list(names["TTFT, direct"].y) == pytest.approx([100.0])
    assert list(names["Failed"].x) == [106.0]
    assert list(names["replica"].y) == [1.0, 2.0]
    assert [a.text for a in figure.layout.annotations if a.text] == ["proxy killed"]
    assert largest_roles(samples, 1) == ["replica"]
