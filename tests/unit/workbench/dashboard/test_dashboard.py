"""The dashboard on a recorded run, with and without widgets, and the effects of its controls.

The recorded run is replayed faster than real time, through the calls that a load and the telemetry
make.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest
from pydantic import SecretStr
from support.example_run import LOAD, MODEL, SECONDS, made_run

from serving.cluster.connection import Cluster
from serving.errors import EndpointGoneError
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import ServiceSpec
from workbench.cost.prices import Prices
from workbench.dashboard import dashboard
from workbench.dashboard.dashboard import Dashboard
from workbench.endpoints.deployed import Endpoint
from workbench.errors import SettingError
from workbench.figures.cluster import timeline_traces
from workbench.figures.panels import LIVE_PANELS
from workbench.loadgen.handle import LiveLoad, LoadResult
from workbench.metrics.health import ClientHealth
from workbench.records import SAMPLE_KINDS
from workbench.runs.run import Run
from workbench.telemetry import sampler
from workbench.workload.rate_curve import RateCurve

INSTANCES = ipywidgets.widgets.widget._instances
SCALING = ScalingSpec(min_replicas=0, max_replicas=2, target_ongoing_requests=4)
PRICES = Prices(cpu_hour=3.6)


class Clock:
    """The time in the recorded run, in seconds."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Replay:
    """Replays the recorded run: its requests through a load, its samples through the telemetry."""

    def __init__(self, recorded: Run, fails: Exception | None = None) -> None:
        self.recorded, self.clock, self.fails = recorded, Clock(), fails
        self.sink: Callable[[Any], None] = lambda sample: None
        self.ended_early: str | None = None

    def start_live_load(self, target: Any, load: Any, **options: Any) -> LiveLoad:
        running = LiveLoad(0, self.clock, load=load, max_rate=options["max_rate"])
        running._task = asyncio.get_running_loop().create_task(self._play(running, options))
        return running

    async def _play(self, running: LiveLoad, options: dict[str, Any]) -> LoadResult:
        run, changes = options["run"], self.recorded.changes()
        records = sorted(self.recorded.records(), key=lambda r: r.end_s or 0)
        samples = list(self.recorded.samples())
        running.state = "running"
        for tick in range(2 * (SECONDS + 4)):
            before, now = tick / 2, tick / 2 + 0.5
            for change in (c for c in changes if before <= c.time_s < now):
                running.changes.append(change)
                run.append_change(change)
            options["on_sent"]([r.sent_s for r in records if before <= r.sent_s < now])
            for record in (r for r in records if before <= r.end_s < now):
                run.append_request(record)
                running.records.append(record)
                options["on_record"](record)
            due = [s for s in samples if before <= s.time_s < now]
            await asyncio.to_thread(lambda due=due: [self.sink(s) for s in due])  # type: ignore[misc]
            self.clock.now_s = now
            await asyncio.sleep(0.002)
            if self.fails is not None and now > SECONDS / 2:
                raise self.fails
        running.state = "ended"
        health = ClientHealth.judge(cpu_share=0.1)
        return LoadResult(list(run.records()), health, len(records), "", 0.0, self.ended_early)

    def telemetry(self, endpoint: Any, clock: Any, sink: Any, **_: Any) -> Replay:
        self.sink = sink
        return self

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_: object) -> None:
        return


class Handle:
    """The handle of a display: an update replaces what is shown."""

    def __init__(self, displayed: list[Any]) -> None:
        self._displayed = displayed

    def update(self, bundle: dict[str, Any], *, raw: bool) -> None:
        assert raw
        self._displayed[-1] = bundle


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made_run(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Everything displayed in the output of the cell."""
    displayed: list[Any] = []

    def display(shown: Any, **_: Any) -> Handle:
        displayed.append(shown)
        return Handle(displayed)

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(dashboard, "DRAW_EVERY_S", 0.2)
    monkeypatch.setattr("workbench.dashboard.controller.context_length", lambda _: 128)
    yield displayed
    ipywidgets.Widget.close_all()


def replayed(
    recorded: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, *, live: bool, **options: Any
) -> Dashboard:
    """A dashboard that replays the recorded run once it is started."""
    player = Replay(recorded, options.pop("fails", None))
    monkeypatch.setattr(dashboard, "start_live_load", player.start_live_load)
    monkeypatch.setattr(sampler, "Telemetry", player.telemetry)
    spec = ServiceSpec(model=ModelSpec(id=MODEL, scaling=SCALING))
    endpoint = Endpoint(spec, Cluster("127.0.0.1:6379"), 8123, SecretStr("sk-x"))
    run = Run.create(folder, {}, run_id="live" if live else "headless")
    return Dashboard(endpoint, LOAD, run, live=live, prices=PRICES, **options)


def finished(dashboard: Dashboard) -> LoadResult:
    async def go() -> LoadResult:
        dashboard.start()
        return await dashboard

    return asyncio.run(go())


def numbers(dashboard: Dashboard, result: LoadResult) -> dict[str, Any]:
    frames = dashboard.frames()
    parts = {part: getattr(frames, part).to_json() for part in ("requests", "cost")}
    parts |= {kind: frames.samples(kind).to_json() for kind in SAMPLE_KINDS}
    return parts | {"summary": result.summary().model_dump(mode="json")}


def test_live_and_headless_runs_have_the_same_figure_and_numbers(
    recorded: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shown: list[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    headless = replayed(recorded, tmp_path, monkeypatch, live=False)
    widgets = len(INSTANCES)
    result = finished(headless)
    assert len(INSTANCES) == widgets
    assert (headless.view, shown) == (None, [])
    assert "Ended: the plan is complete" in capsys.readouterr().out

    with pytest.raises(SettingError, match="has been started"):
        finished(headless)

    live = replayed(recorded, tmp_path, monkeypatch, live=True)
    live_result = finished(live)
    assert len(shown) == 1
    assert len(INSTANCES) > widgets

    assert live.figure().to_json() == headless.figure().to_json()
    assert numbers(live, live_result) == numbers(headless, result)
    assert json.loads(numbers(live, live_result)["cost"])["so_far"]
    check_live_figure_matches_final_figure(live)


def press(dashboard: Dashboard, action: str, *values: Any) -> None:
    """Send what the page sends when a control is used."""
    assert dashboard.view is not None
    dashboard.view.widget._handle_custom_msg({"action": action, "values": list(values)}, [])


def message(dashboard: Dashboard) -> str:
    assert dashboard.view is not None
    return str(dashboard.view.widget.header["message"])


def check_live_figure_matches_final_figure(live: Dashboard) -> None:
    """Compare the last drawing with the final figure, except for an unfinished second."""
    assert live.view is not None
    final = timeline_traces(live.frames(), LIVE_PANELS)
    drawn = live.view.figure().data
    assert [trace.name for trace in drawn] == [placed.trace["name"] for placed in final]
    for seen, placed in zip(drawn, final, strict=True):
        rows = min(len(seen.x), len(placed.trace["x"]))
        assert rows >= len(placed.trace["x"]) - 1, placed.trace["name"]
        # Tokens are replayed half a second at a time, and there are few at first.
        axes = ("x",) if "million" in placed.trace["name"] else ("x", "y")
        for axis in axes:
            np.testing.assert_allclose(
                np.asarray(seen[axis][:rows], float),
                np.asarray(placed.trace[axis][:rows], float),
                atol=0.01,
                err_msg=placed.trace["name"],
            )


def test_only_a_minute_is_kept_but_the_page_has_all(
    recorded: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: list[Any]
) -> None:
    live = replayed(recorded, tmp_path, monkeypatch, live=True)
    finished(live)
    assert live.view is not None
    kept = {kind: len(samples) for kind, samples in live._state._samples.items()}
    assert kept["decision"] == 4
    assert kept["deployment"] <= 62
    assert len(live.view.figure().data[0].x) >= SECONDS


def test_dashboard_can_be_shown_again_and_all_outputs_get_the_picture(
    recorded: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: list[Any]
) -> None:
    live = replayed(recorded, tmp_path, monkeypatch, live=True)
    live.show()
    live.show()
    assert shown[0] is shown[1]
    finished(live)
    assert len(shown) == 2, "start shows it only if nobody has"
    assert len(live._shown) == 2


def test_first_state_is_whole(
    recorded: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: list[Any]
) -> None:
    """A page may draw it before an update arrives; without a share the progress bar fails."""
    monkeypatch.setattr("workbench.dashboard.view.View.set_state", lambda self, state: None)
    live = replayed(recorded, tmp_path, monkeypatch, live=True)
    live.show()
    assert live.view is not None
    header = live.view.widget.header
    assert header["share"] is None
    assert header["progress"].startswith("The plan takes ")


def test_state_that_a_reloaded_page_reads_has_the_whole_view(
    recorded: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: list[Any]
) -> None:
    live = replayed(recorded, tmp_path, monkeypatch, live=True)
    finished(live)
    assert live.view is not None
    state = live.view.widget.get_state()
    offered, achieved = state["history"]["lines"][:2]
    assert len(offered["x"]) == len(achieved["x"]) >= SECONDS
    assert (state["header"]["state"], state["header"]["label"]) == ("ended", "Ended")
    assert state["load"]["max_rate"] == 8
    assert [event["title"] for event in state["events"] if "Target" in event["title"]] == [
        "Target 1 → 0",
        "Target 2 → 1",
        "Target 1 → 2",
        "Target 0 → 1",
    ]
    assert {"1 request shed", "1 request failed"} <= {event["title"] for event in state["events"]}
    json.dumps({name: value for name, value in state.items() if name != "plotly"}, allow_nan=False)


def test_lost_endpoint_is_reported_and_the_figure_stays(
    recorded: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: list[Any]
) -> None:
    gone = EndpointGoneError("http://127.0.0.1:8123/v1: it stopped answering")
    live = replayed(recorded, tmp_path, monkeypatch, live=True, fails=gone)
    with pytest.raises(EndpointGoneError, match="stopped answering"):
        finished(live)
    assert live.view is not None
    assert "EndpointGoneError" in message(live)
    assert len(live.view.figure().data[0].x) > 20
    assert live.view.widget.header["state"] == "failed"
    assert live.view.widget.load["disabled"]
    assert len(live.figure().data[0].x) > 20  # and the run's folder has it too


def test_saved_output_has_a_picture_of_the_last_state(
    recorded: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: list[Any]
) -> None:
    live = replayed(recorded, tmp_path, monkeypatch, live=True)
    finished(live)
    (bundle,) = shown
    assert "application/vnd.jupyter.widget-view+json" in bundle
    picture = bundle["text/html"]
    assert "Ended: the plan is complete" in picture
    assert "plotly-graph-div" in picture
    assert "202 completed" not in picture
    assert "200 completed, 2 failed" in picture
    assert "Target 0 → 1" in picture
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", picture)


@pytest.mark.parametrize("live", [True, False])
def test_interrupt_is_shown(
    recorded: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shown: list[Any],
    capsys: pytest.CaptureFixture[str],
    live: bool,
) -> None:
    dashboard = replayed(recorded, tmp_path, monkeypatch, live=live)

    async def go() -> None:
        dashboard.start()
        waiting = asyncio.ensure_future(dashboard._wait())
        await asyncio.sleep(0.1)
        assert dashboard.running is not None
        dashboard.running.cancelled = 198  # as the load counts what an interrupt cuts
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(go())
    text = capsys.readouterr().out if dashboard.view is None else message(dashboard)
    assert "Interrupted: 198 requests cancelled" in text
    if dashboard.view is not None:
        assert dashboard.view.widget.header["label"] == "Interrupted"
        assert "has ended" in dashboard.view.widget.load["disabled"]


def test_drawing_error_is_raised_and_shown(
    recorded: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: list[Any]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("drawn wrong")

    live = replayed(recorded, tmp_path, monkeypatch, live=True)
    monkeypatch.setattr("workbench.dashboard.view.View.draw", broken)
    with pytest.raises(ZeroDivisionError, match="drawn wrong"):
        finished(live)
    assert live.view is not None
    assert "drawn wrong" in message(live)
    assert len(list(live.run.records())) == 202  # the load continued


@pytest.fixture(scope="module")
def controls(recorded: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A dashboard without a load, shared because its widgets take a while to create."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("IPython.display.display", lambda *_, **__: None)
        patch.setattr("workbench.dashboard.controller.context_length", lambda _: 128)
        folder = tmp_path_factory.mktemp("controls")
        dashboard = replayed(recorded, folder, patch, live=True, max_rate=20.0)
        dashboard.show()
        yield dashboard


class TestControls:
    @pytest.fixture
    def running(self, controls: Dashboard) -> Dashboard:
        """A dashboard whose load never sends, outside of any event loop."""
        dashboard = controls
        dashboard.controller.rescaling = None
        load = LiveLoad(0, lambda: 5.0, load=LOAD, max_rate=20.0, max_model_len=64)
        load.state = "running"
        dashboard.controller.running = load
        return dashboard

    def asked(self, dashboard: Dashboard) -> list[tuple[str, float | None]]:
        assert dashboard.running is not None
        return [(change.what, change.value) for change in dashboard.running._requested]

    def test_controls_act_on_the_load(self, running: Dashboard) -> None:
        press(running, "set_rate", 12.0)
        press(running, "set_burstiness", 0.5)
        press(running, "set_output_tokens", 20)
        press(running, "pause")
        press(running, "start")
        assert self.asked(running) == [
            ("rate", 12.0),
            ("burstiness", 0.5),
            ("output_tokens", 20),
            ("pause", None),
            ("resume", None),
        ]
        press(running, "stop")
        assert running.running is not None
        assert running.running._stopped == "stopped by the user"

    def test_values_in_force_are_shown(self, running: Dashboard) -> None:
        assert running.view is not None
        press(running, "set_rate", 12.0)
        press(running, "set_burstiness", None)
        running.view.set_state("running")
        load = running.view.widget.load
        assert (load["rate"], load["burstiness"], load["manual"]) == (12.0, None, True)
        assert load["disabled"] == ""

    def test_rate_follows_the_plan_without_setting_a_rate(self, running: Dashboard) -> None:
        assert running.view is not None
        assert running.running is not None
        running.running._curve = RateCurve(3.0)
        running.view.set_state("running")
        assert running.view.widget.load["rate"] == 3.0
        assert self.asked(running) == []

    def test_errors_are_shown_below_the_controls(self, running: Dashboard) -> None:
        press(running, "set_output_tokens", 99)
        assert "beyond max_model_len = 64" in message(running)
        assert running.view is not None
        assert running.view.widget.header["error"]
        assert running.view.widget.load["output_tokens"] != 99
        assert self.asked(running) == []

    def test_only_the_controls_can_be_called(self, running: Dashboard) -> None:
        press(running, "settings")
        assert "unknown action 'settings'" in message(running)

    def test_scaling_is_applied_in_the_background(
        self, running: Dashboard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        applied: list[Any] = []
        assert running.view is not None
        widget = running.view.widget

        def rescale(self: Endpoint, *, progress: Any, **scaling: Any) -> None:
            applied.append((threading.current_thread() is threading.main_thread(), scaling))
            assert widget.scaling["applying"]

        monkeypatch.setattr(Endpoint, "rescale", rescale)

        async def go() -> None:
            press(running, "rescale", 1.5, 3)
            assert running.controller.rescaling is not None
            await running.controller.rescaling
            await asyncio.sleep(0)

        asyncio.run(go())
        assert applied == [(False, {"target_ongoing_requests": 1.5, "max_replicas": 3})]
        assert self.asked(running) == [("scaling", None)]
        press(running, "rescale", 1000.0, 2)
        running._draw()
        assert "must be at most" in message(running), "an earlier message hides the error"
        assert widget.scaling == {
            "target_ongoing_requests": 4,
            "max_replicas": 2,
            "min_replicas": 0,
            "applying": False,
        }

    def test_invalid_scaling_starts_nothing(self, running: Dashboard) -> None:
        press(running, "rescale", 1000.0, 2)
        assert "target_ongoing_requests must be at most" in message(running)
        assert running.controller.rescaling is None
