"""The dashboard: a load in the hand, and what the cluster does about it, on one timeline.

    dashboard = Dashboard(endpoint, load, run, live=True)
    dashboard.start()            # in one cell: it goes on in the background
    result = await dashboard     # in the next: until the plan ends, or somebody presses Stop
    render(dashboard.figure())   # the same picture, from the run's folder, for the saved notebook

With `live=False` no widget is made: lines are printed, and the figure and the numbers are the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.cost.series import CostSeries
from workbench.dashboard.controller import actions, peak_rate, readings, settings
from workbench.dashboard.state import LiveState
from workbench.endpoints.deployed import Endpoint
from workbench.errors import SettingError
from workbench.figures.cluster_frames import Frames, frames_of
from workbench.loadgen.handle import LiveLoad
from workbench.loadgen.progress import LINE_EVERY_S, LiveLineProgress
from workbench.loadgen.start import start_live_load

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.cost.prices import Prices
    from workbench.dashboard.view import View
    from workbench.endpoints.remote import Remote
    from workbench.loadgen.handle import LoadResult
    from workbench.metrics.slo import SLO
    from workbench.records import Sample
    from workbench.runs.run import Run
    from workbench.workload.spec import LoadSpec

EVERY_S = 1.0
"""Seconds from one drawing to the next, at least."""
WINDOW_S = 180


class Dashboard:
    """Sends `load` to `endpoint` into `run`, watches the cluster, and shows both.

    `prices` say what replicas cost while they are held, and `slo` which tokens count as served
    well. `max_rate` is where the slider ends. Once the plan is over, the cluster is watched for up
    to `settle_s` more, until the replicas are back at their minimum. `window_s` is how much is
    shown while it runs.
    """

    def __init__(
        self,
        endpoint: Remote,
        load: LoadSpec,
        run: Run,
        *,
        live: bool = True,
        prices: Prices | None = None,
        slo: SLO | None = None,
        max_rate: float | None = None,
        settle_s: float = 0.0,
        window_s: int = WINDOW_S,
    ) -> None:
        self.endpoint, self.load, self.run = endpoint, load, run
        self.running: LiveLoad | None = None
        self.view: View | None = None
        self.max_rate = max_rate or 2 * peak_rate(load)
        self.rescaling: asyncio.Task[None] | None = None
        ours = endpoint if isinstance(endpoint, Endpoint) else None
        self._deployments = ours.deployments if ours else []
        # The service as it was at first: prices do not change with its scaling.
        self._cost = partial(CostSeries, ours.spec if ours else None, prices, slo=slo)
        self._state = LiveState(
            self._deployments, window_s=window_s, cost=self._cost(keep=window_s)
        )
        self._settle_s, self._window_s = settle_s, window_s
        self._live = live
        self._said: list[tuple[str, bool]] = []
        self._task: asyncio.Task[LoadResult] | None = None

    def show(self) -> None:
        """Put the widgets into the cell's output, to be started by hand. Headless: nothing."""
        if self._live and self.view is None:
            from IPython.display import display

            self.view = self._made_view()
            display(self.view.box)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Begin to send, to sample and to draw; returns at once. Await the dashboard for the end.

        Raises, before anything is sent, what `start_live_load` raises.
        """
        self.show()
        if self._task is not None:
            raise SettingError("this dashboard has been started: make another for another run")
        self.running = start_live_load(
            self.endpoint,
            self.load,
            max_rate=self.max_rate,
            run=self.run,
            progress=None,
            on_record=self._state.ended,
            on_sent=self._state.sent,
        )
        self._task = asyncio.get_running_loop().create_task(self._follow())
        self._task.add_done_callback(self._tell_failure)

    def __await__(self) -> Generator[Any, None, LoadResult]:
        return self._wait().__await__()

    async def _wait(self) -> LoadResult:
        if self._task is None:
            raise SettingError("the dashboard has not been started: call start() first")
        try:
            while not (await asyncio.wait([self._task], timeout=LINE_EVERY_S))[0]:
                self._print_progress()
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.wait([self._task])
            raise
        self._print_progress()
        return self._task.result()

    def _print_progress(self) -> None:
        """Headless: from the cell that waits, since what a task prints belongs to an older one."""
        running = self.running
        if self._live or running is None:
            return
        said, self._said = self._said, []
        lines = [line for line, _ in said]
        print("\n".join([LiveLineProgress(running).now(), *lines]), flush=True)

    def frames(self) -> Frames:
        """The whole run as frames, from its folder."""
        return frames_of(self.run, self._deployments, cost=self._cost())

    def figure(self) -> go.Figure:
        """The whole run on one timeline, from its folder: the same live, headless and later."""
        from workbench.figures.cluster import cluster_timeline

        summary = self.run.summary()
        return cluster_timeline(self.frames(), health=summary.client_health if summary else None)

    async def _follow(self) -> LoadResult:
        from workbench.telemetry.sampler import Telemetry

        assert self.running is not None
        drawing = asyncio.create_task(self._keep_drawing())
        try:
            with Telemetry(self.endpoint, self.running.clock, self._sampled, say=self._warn):
                result = await self.running
                if result.ended_early is None:
                    await self._settle()
            self.say(f"ended: {result.ended_early or 'the plan is over'}")
            self._draw()
            return result
        finally:
            drawing.cancel()
            drawn = (await asyncio.gather(drawing, return_exceptions=True))[0]
            if isinstance(drawn, Exception):
                raise drawn

    async def _settle(self) -> None:
        """Watch on until no more replicas are held than the least, but not for ever."""
        if not isinstance(self.endpoint, Endpoint):
            return
        clock = asyncio.get_running_loop().time
        until = clock() + self._settle_s
        while clock() < until:
            least = sum(model.scaling.min_replicas for model in self.endpoint.spec.models)
            if self._state.held == least:
                return
            await asyncio.sleep(EVERY_S)

    async def _keep_drawing(self) -> None:
        """Twice a second at most. What goes wrong is said, and ends the drawing, not the load."""
        try:
            while True:
                await asyncio.sleep(EVERY_S)
                self._draw()
        except Exception as problem:
            if self.view is not None:
                self.view.say(f"no more drawing: {type(problem).__name__}: {problem}", bad=True)
            raise

    def _draw(self) -> None:
        running, view = self.running, self.view
        assert running is not None
        now = running.clock()
        self._state.advance(now)
        if view is None:
            return
        said, self._said = self._said, []
        if said:  # what went wrong must not be covered by what came after it
            line, bad = next((one for one in reversed(said) if one[1]), said[-1])
            view.say(line, bad=bad)
        view.set_state(running.state)
        if running.state == "running" and not running.by_hand:
            view.follow_rate(running.rate)
        if self._state.news:
            self._state.news = 0
            frames = self._state.frames(running.changes)
            view.draw(frames, max(0.0, now - self._window_s), max(now, 30.0))
            view.read(readings(running, frames))

    def _sampled(self, sample: Sample) -> None:
        self.run.append_telemetry(sample)
        self._state.sampled(sample)

    def say(self, line: str, *, bad: bool = False) -> None:
        """A line for whoever looks; from any thread."""
        self._said.append((line, bad))

    def _warn(self, line: str) -> None:
        self.say(line, bad=True)

    def _tell_failure(self, task: asyncio.Task[LoadResult]) -> None:
        # Whoever awaits gets the exception; whoever only looks gets it here.
        problem = None if task.cancelled() else task.exception()
        if self.view is not None:
            self.view.set_state("ended")
            if problem is not None:
                self.view.say(f"{type(problem).__name__}: {problem}", bad=True)

    def _made_view(self) -> View:
        from workbench.dashboard.view import View

        return View(settings(self), actions(self), self._state.frames([]))
