"""Tunings of configurations whose goodput is known."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tuning import BOUNDS, Measured, configuration

from serving.spec.model import ModelSpec
from serving.spec.pipeline import PipelineSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import ServiceSpec
from workbench.errors import RunError, SettingError, SpecError
from workbench.figures.pareto import frontier
from workbench.tuning.halving import rung_sizes
from workbench.tuning.result import TuningResult
from workbench.tuning.store import Store
from workbench.tuning.tuner import run_trials, tune_engine
from workbench.workload.arrivals import ClosedLoop, TraceReplay
from workbench.workload.prompts import RandomPrompts
from workbench.workload.spec import LoadSpec

LOAD = LoadSpec(
    arrivals=ClosedLoop(max_concurrency=8),
    prompts=RandomPrompts(input=8, output=8),
    count=10,
    duration_s=2.0,
)


def tune(
    measured: Measured,
    folder: Path,
    *,
    eta: int = 3,
    budget_min: float | None = None,
    lines: list[str] | None = None,
) -> TuningResult:
    """Tune the values that `measured` knows; the first is the default."""
    (folder / "trials").mkdir(exist_ok=True)
    received: list[str] = [] if lines is None else lines
    rungs, complete = asyncio.run(
        run_trials(
            [configuration(value) for value in measured.goodput],
            eta,
            measured,
            store=Store(folder),
            budget_min=budget_min,
            notify=received.append,
            clock=measured.clock,
        )
    )
    return TuningResult(rungs=tuple(rungs), complete=complete, unit="concurrent requests")


def values(configurations: Iterable[Any]) -> list[int]:
    return [one.settings["max_num_seqs"] for one in configurations]


@given(number=st.integers(1, 500), eta=st.integers(2, 6))
def test_rungs_shrink_by_eta(number: int, eta: int) -> None:
    sizes = rung_sizes(number, eta)
    # Rounding up repeatedly is the same as once.
    assert sizes == [-(-number // eta**rung) for rung in range(len(sizes))]
    assert sizes[-1] <= eta
    assert all(size > eta for size in sizes[:-1])


@pytest.mark.parametrize(("eta", "number", "field"), [(1, 4, "eta"), (2, 0, "configurations")])
def test_rungs_need_an_eta_and_configurations(eta: int, number: int, field: str) -> None:
    with pytest.raises(SettingError, match=f"{field} must be at least"):
        rung_sizes(number, eta)


@settings(max_examples=20)
@given(order=st.permutations(range(1, 10)), eta=st.integers(2, 4))
def test_the_best_is_found_with_the_predicted_number_of_deployments(
    order: list[int], eta: int
) -> None:
    """Goodputs are 10 apart and their repeats 1, so each rung orders them correctly."""
    measured = Measured({value: 10 * value for value in order})
    with TemporaryDirectory() as folder:
        result = tune(measured, Path(folder), eta=eta)
    assert result.best == configuration(9)
    assert result.complete
    sizes = rung_sizes(9, eta)
    default_rank = sorted(order, reverse=True).index(order[0])
    kept = sum(default_rank >= size for size in sizes)  # rungs with the default in addition
    assert len(measured.calls) == sum(sizes) + kept
    for rung, size in enumerate(sizes):
        of_rung = {value for value, number in measured.calls if number == rung}
        assert of_rung == {*range(10 - size, 10), order[0]}
    assert result.tied == []


def test_the_configuration_that_runs_is_the_first_of_the_next_rung(tmp_path: Path) -> None:
    measured = Measured({1: 10, 2: 20, 3: 30, 4: 40, 5: 50, 6: 45})
    tune(measured, tmp_path)
    assert measured.calls[5:7] == [(6, 0), (6, 1)]


def test_the_table_is_best_first_with_the_difference_from_the_default(tmp_path: Path) -> None:
    result = tune(Measured({4: 40, 1: 10, 8: 80, 2: 20}), tmp_path, eta=2)
    table = result.frame()
    assert table.max_num_seqs.tolist() == ["8", "4", "2", "1"]
    assert table.rung.tolist() == [2, 2, 1, 1]
    assert table.goodput.tolist() == pytest.approx([80, 40, 20, 10])
    # The range of three repeats, 1 request/s around the mean, is their interval.
    assert table.low.tolist() == pytest.approx([79, 39, 19, 9], abs=0.2)
    assert table.high.tolist() == pytest.approx([81, 41, 21, 11], abs=0.2)
    ratios = [(79 / 39 * 80 / 40 * 81 / 41) ** (1 / 3), 1.0]
    assert table.ratio.tolist()[:2] == pytest.approx(ratios)
    assert table.verdict.tolist() == ["better", "the default", "worse", "worse"]
    assert table.slo_attainment.tolist() == [1.0] * 4
    assert table.p95_ttft_ms.tolist() == pytest.approx([250.0] * 4)
    assert set(table.note) == {""}
    assert result.headline() == (
        "max_num_seqs=8: 80 requests/s within the SLO, from 79 to 81, at 8 concurrent requests"
    )


def test_configurations_whose_intervals_overlap_are_named(tmp_path: Path) -> None:
    measured = Measured({1: 50, 2: 80, 3: 79, 4: 77, 5: 20}, spread=1)
    result = tune(measured, tmp_path, eta=5)
    assert result.best == configuration(2)
    # From 79 to 81 against 78 to 80, and against 76 to 78.
    assert values(result.tied) == [3]
    assert "not distinguishable from it: max_num_seqs=3" in result.headline()
    notes = dict(zip(result.frame().max_num_seqs, result.frame().note, strict=True))
    assert notes["3"] == "not distinguishable from the best"
    assert notes["4"] == notes["2"] == ""


def test_a_tie_that_was_dropped_is_still_named(tmp_path: Path) -> None:
    result = tune(Measured({1: 80, 2: 80, 3: 79, 4: 10}), tmp_path, eta=2)
    assert sorted(values(result.rungs[1].configurations)) == [1, 2]
    assert sorted(values([result.best, *result.tied])) == [1, 2, 3]


def test_meeting_the_slo_comes_before_goodput(tmp_path: Path) -> None:
    measured = Measured({1: 20, 2: 80, 3: 21}, misses=frozenset({2}))
    result = tune(measured, tmp_path)
    assert result.best == configuration(3)
    assert values(result.tied) == [1]
    verdicts = dict(zip(result.frame().max_num_seqs, result.frame().verdict, strict=True))
    assert verdicts["2"] == "misses the SLO"
    all_miss = Measured({1: 20, 2: 80}, misses=frozenset({1, 2}))
    (tmp_path / "second").mkdir()
    assert "no load met the SLO" in tune(all_miss, tmp_path / "second").headline()


def test_a_configuration_that_does_not_start_is_a_result(tmp_path: Path) -> None:
    lines: list[str] = []
    measured = Measured({1: 10, 2: None, 3: 30, 4: None, 5: None})
    result = tune(measured, tmp_path, eta=2, lines=lines)
    assert result.best == configuration(3)
    table = result.frame()
    assert table.max_num_seqs.tolist() == ["3", "1", "2", "4", "5"]
    assert table.note.tolist()[2:] == ["failed: the engine reported: no memory"] * 3
    assert table.goodput.isna().tolist() == [False, False, True, True, True]
    assert measured.calls[5:] == [(3, 1), (1, 1), (1, 2), (3, 2)], "what failed does not go on"
    assert lines.count("    failed: the engine reported: no memory") == 3


def test_the_default_may_fail_and_so_may_all(tmp_path: Path) -> None:
    result = tune(Measured({1: None, 2: 20, 3: 30}), tmp_path)
    assert result.best == configuration(3)
    assert result.frame().verdict.tolist()[:2] == ["the default was not measured"] * 2
    (tmp_path / "second").mkdir()
    nothing = tune(Measured({1: None, 2: None}), tmp_path / "second")
    assert nothing.best is None
    assert nothing.summary is None
    assert nothing.headline() == "no configuration was measured (the engine reported: no memory)"
    assert len(nothing.frame()) == 2
    assert len(frontier(nothing.frontier()).data) == 0


def test_an_interrupted_tuning_continues(tmp_path: Path) -> None:
    goodput = {value: 10 * value for value in range(9, 0, -1)}
    (whole := tmp_path / "whole").mkdir()
    (cut := tmp_path / "cut").mkdir()
    uninterrupted = Measured(goodput)
    expected = tune(uninterrupted, whole)
    first = Measured(goodput, interrupt_at=10)
    with pytest.raises(KeyboardInterrupt):
        tune(first, cut)
    second, lines = Measured(goodput), list[str]()
    result = tune(second, cut, lines=lines)
    assert first.calls + second.calls == uninterrupted.calls
    assert result.frame().equals(expected.frame())
    assert sum("already measured" in line for line in lines) == 10
    third = Measured(goodput)
    tune(third, cut)
    assert third.calls == []


def test_a_damaged_trial_is_reported(tmp_path: Path) -> None:
    tune(Measured({1: 10, 2: 20}), tmp_path)
    file, _ = (tmp_path / "trials").iterdir()
    file.write_text('{"rung": 0}')
    with pytest.raises(RunError, match=f"{file} is not a trial: remove it to measure again"):
        tune(Measured({1: 10, 2: 20}), tmp_path)


def test_the_budget_ends_a_call_and_the_next_one_continues(tmp_path: Path) -> None:
    """A trial takes 16 s in the first rung and 28 s in the second."""
    goodput = {value: 10 * value for value in range(6, 0, -1)}
    first, lines = Measured(goodput), list[str]()
    result = tune(first, tmp_path, budget_min=1.0, lines=lines)
    assert len(first.calls) == math.floor(60 / 16)
    assert not result.complete
    assert result.best == configuration(6), "of those that were measured"
    assert lines[-1] == (
        "stopped: the budget of 1 min does not allow another deployment of about 16 s; call again "
        "to continue"
    )
    assert "call again to continue" in result.headline()
    second = Measured(goodput)
    result = tune(second, tmp_path, budget_min=1.3)
    assert second.calls == [(3, 0), (2, 0), (1, 0), (6, 1)], "3 * 16 + 28 s are within 78 s"
    assert not result.complete
    assert result.best == configuration(6)
    assert result.frame().rung.tolist() == [2, 1, 1, 1, 1, 1]
    assert tune(Measured(goodput), tmp_path).complete


def test_the_answer_is_that_of_the_last_complete_rung(tmp_path: Path) -> None:
    """Of the second rung only 6 is measured: 6 * 16 + 28 s of 126 s."""
    measured = Measured({1: 60, 2: 10, 3: 20, 4: 30, 5: 15, 6: 55})
    result = tune(measured, tmp_path, budget_min=2.1)
    assert measured.calls[6:] == [(6, 1)]
    assert result.best == configuration(1)
    assert result.frame().max_num_seqs.tolist()[:3] == ["1", "6", "4"]


def test_progress_estimates_the_rest(tmp_path: Path) -> None:
    lines: list[str] = []
    tune(Measured({value: 10 * value for value in range(6, 0, -1)}), tmp_path, lines=lines)
    assert lines[0] == "[rung 1 of 2, trial 1] max_num_seqs=6"
    assert lines[1] == "    60 requests/s within the SLO, which it met"
    # 5 trials of 16 s and 2 of 28 s; then 1 of 16 s and 2 of 28 s.
    assert lines[2] == "[rung 1 of 2, trial 2] max_num_seqs=5 (about 2 min left)"
    assert lines[10] == "[rung 1 of 2, trial 6] max_num_seqs=1 (about 72 s left)"
    assert lines[-2] == "[rung 2 of 2, trial 8] max_num_seqs=5 (about 28 s left)"


def test_the_frontier_has_a_curve_per_configuration(tmp_path: Path) -> None:
    result = tune(Measured({1: 10, 2: 20}), tmp_path)
    points = result.frontier()
    assert points.group.tolist() == ["max_num_seqs=2", "max_num_seqs=1"]
    # Two tokens per answer, 0.25 s apart.
    assert points.tokens_per_gpu.tolist() == pytest.approx([40, 20])
    assert points.tokens_per_user.tolist() == pytest.approx([4, 4])
    assert len(frontier(points).data) == 2


class TestInvalidInput:
    """Each is rejected before anything is deployed."""

    def rejected(self, folder: Path, **changed: Any) -> None:
        def deploy(spec: ServiceSpec) -> Any:
            raise AssertionError("nothing may be deployed")

        given: dict[str, Any] = {
            "spec": ServiceSpec(model=ModelSpec()),
            "settings": {"max_num_seqs": [8, 2]},
            "load": LOAD,
            "slo": BOUNDS,
            "open": deploy,
            "folder": folder,
        }
        asyncio.run(tune_engine(**given | changed))

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"eta": 1}, "eta must be at least 2, got 1"),
            ({"repeats": 2}, "repeats must be at least 3 for an interval, got 2"),
            ({"budget_min": 0}, "budget_min must be above 0 and finite, got 0"),
            ({"loads": [8, 8]}, "loads has a value twice"),
            ({"load": LoadSpec()}, "load must have duration_s or count, got neither"),
            (
                {"load": LoadSpec(arrivals=TraceReplay(path="t"), count=3), "loads": [1]},
                "arrivals of kind 'trace' have no single rate",
            ),
            ({"settings": {"max_num_seqs": list(range(1, 1002))}}, "1001 combinations"),
            ({"spec": PipelineSpec(models=[ModelSpec()])}, "a ServiceSpec.*got a PipelineSpec"),
            (
                {"spec": ServiceSpec(model=ModelSpec(scaling=ScalingSpec(max_replicas=2)))},
                "as many min_replicas as max_replicas.*got 1 and 2",
            ),
        ],
    )
    def test_number(self, changed: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(SettingError, match=message):
            self.rejected(tmp_path, **changed)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"max_num_seq": [8, 2]}, "Did you mean 'max_num_seqs'?"),
            ({"max_model_len": [512, 1024]}, "set model.max_model_len instead"),
        ],
    )
    def test_argument(self, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match=message):
            self.rejected(tmp_path, settings=settings)
        assert list(tmp_path.iterdir()) == []
