"""The dashboard: a live load with its controls, and the cluster's response, on one timeline.

    dashboard = Dashboard(endpoint, load, run, live=True)
    dashboard.start()            # in one cell: it runs in the background
    result = await dashboard     # in the next: until the plan ends, or Stop is pressed
    wb.show(dashboard.figure())  # the same picture from the run's folder, for the saved notebook

With `live=False` no widget is created. Lines are printed instead; figure and numbers are the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.cost.series import CostSeries
from workbench.dashboard.controller import Controller
from workbench.dashboard.state import KEEP_S, LiveState
from workbench.endpoints.deployed import Endpoint
from workbench.errors import SettingError
from workbench.figures.cluster_frames import Frames, frames_of
from workbench.loadgen.handle import interrupted
from workbench.loadgen.progress import LINE_EVERY_S, LiveLineProgress
from workbench.loadgen.start import start_live_load

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.cost.prices import Prices
    from workbench.dashboard.view import View
    from workbench.endpoints.remote import Remote
    from workbench.loadgen.handle import LiveLoad, LoadResult
    from workbench.metrics.slo import SLO
    from workbench.records import Sample
    from workbench.runs.run import Run
    from workbench.workload.spec import LoadSpec

DRAW_EVERY_S = 1.0
"""The minimum seconds between two drawings."""
LIVE_WINDOW_S = 300


class Dashboard:
    """Sends `load` to `endpoint`, records it in `run`, watches the cluster, and shows both.

    Args:
        endpoint: Where requests go. A service that we deployed can be rescaled too.
        load: The planned load.
        run: The run folder.
        live: Whether to show widgets. If not, lines are printed.
        prices: What replicas cost; without prices no cost is shown.
        slo: Which requests count as good, in the numbers and the cost per million tokens.
        max_rate: The end of the rate slider in requests/s; by default twice the plan's peak.
        settle_s: Maximum seconds to watch the cluster after the plan ends, until its replicas
            are back at their minimum.
        window_s: Seconds that the live figure shows at first.
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
        window_s: int = LIVE_WINDOW_S,
    ) -> None:
        self.endpoint, self.load, self.run = endpoint, load, run
        self.view: View | None = None
        self.controller = Controller(
            endpoint, load, max_rate=max_rate, begin=self.start, post=self._post
        )
        own = endpoint if isinstance(endpoint, Endpoint) else None
        self._deployments = endpoint.deployments
        # The specification before any rescaling: prices do not depend on the scaling.
        self._cost = partial(CostSeries, own.spec if own else None, prices, slo=slo)
        self._state = LiveState(self._deployments, cost=self._cost(keep=KEEP_S), slo=slo)
        self._settle_s, self._window_s = settle_s, window_s
        self._live, self._slo = live, slo
        self._phase: str | None = None  # what follows the load, or how it ended
        self._messages: list[tuple[str, bool]] = []
        self._task: asyncio.Task[LoadResult] | None = None
        self._shown: list[Any] = []  # the handles of the displayed widgets

    @property
    def running(self) -> LiveLoad | None:
        """The load, once it has started."""
        return self.controller.running

    def show(self) -> None:
        """Show the dashboard in the cell's output, any number of times. Without `live`, do nothing.

        All outputs show the same. They are restored after a reload of the page.
        """
        if not self._live:
            return
        from IPython.display import display

        if self.view is None:
            from workbench.dashboard.view import View

            settings = self.controller.settings()
            self.view = View(
                settings, self.controller, self._state, report=self._report, window_s=self._window_s
            )
        handle = display(self.view.widget, display_id=True)  # type: ignore[no-untyped-call]
        self._shown.append(handle)

    def start(self) -> None:
        """Start to send, sample and draw, and return at once. Await the dashboard for the end.

        Raises:
            SettingError: If the dashboard has been started before, and as `start_live_load`.
        """
        if self._task is not None:
            raise SettingError("this dashboard has been started: create another for another run")
        if self.view is None:
            self.show()
        self.controller.running = start_live_load(
            self.endpoint,
            self.load,
            max_rate=self.controller.max_rate,
            run=self.run,
            progress=None,
            on_record=self._state.ended,
            on_sent=self._state.sent,
        )
        self._task = asyncio.get_running_loop().create_task(self._follow())
        self._task.add_done_callback(self._show_end)

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
            self._print_progress()
            raise
        self._print_progress()
        return self._task.result()

    def _print_progress(self) -> None:
        # Printed by the cell that waits: output of the background task would go to an older cell.
        running = self.running
        if self._live or running is None:
            return
        messages, self._messages = self._messages, []
        lines = [text for text, _ in messages]
        print("\n".join([LiveLineProgress(running).now(), *lines]), flush=True)

    def frames(self) -> Frames:
        """Return the whole run as frames, read from its folder."""
        return frames_of(self.run, self._deployments, cost=self._cost(), slo=self._slo)

    def figure(self) -> go.Figure:
        """Return the whole run on one timeline, read from its folder."""
        from workbench.figures.cluster import cluster_timeline

        summary = self.run.summary()
        return cluster_timeline(self.frames(), health=summary.client_health if summary else None)

    async def _follow(self) -> LoadResult:
        from workbench.telemetry.sampler import Telemetry

        assert self.running is not None
        drawing = asyncio.create_task(self._keep_drawing())
        try:
            with Telemetry(
                self.endpoint, self.running.clock, self._sampled, notify=self._post_error
            ):
                result = await self.running
                if result.ended_early is None:
                    await self._wait_for_scale_down()
            self._end("ended", f"Ended: {result.ended_early or 'the plan is complete'}")
            return result
        except asyncio.CancelledError:
            self._end("interrupted", interrupted(self.running.cancelled).capitalize())
            raise
        finally:
            drawing.cancel()
            drawn = (await asyncio.gather(drawing, return_exceptions=True))[0]
            if isinstance(drawn, Exception):
                raise drawn

    def _end(self, phase: str, text: str) -> None:
        self._phase = phase
        self._post(text, error=phase == "interrupted")
        self._draw(final=True)

    async def _wait_for_scale_down(self) -> None:
        """Wait until the replicas are at their minimum, for at most `settle_s`."""
        if not isinstance(self.endpoint, Endpoint) or not self._settle_s:
            return
        self._phase = "settling"
        self._post(
            f"The plan is complete, and nothing more is sent; watching the replicas for at most "
            f"{self._settle_s:g} s"
        )
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._settle_s
        while clock() < deadline:
            minimum = sum(model.scaling.min_replicas for model in self.endpoint.spec.models)
            if self._state.held == minimum:
                return
            await asyncio.sleep(DRAW_EVERY_S)

    async def _keep_drawing(self) -> None:
        """Draw regularly. An error is shown and ends the drawing, but not the load."""
        try:
            while True:
                await asyncio.sleep(DRAW_EVERY_S)
                self._draw()
        except Exception as error:
            if self.view is not None:
                text = f"Drawing has stopped: {type(error).__name__}: {error}"
                self.view.show_message(text, error=True)
            raise

    def _draw(self, *, final: bool = False) -> None:
        running, view = self.running, self.view
        assert running is not None
        now = running.clock()
        self._state.advance(now)
        if view is None:
            return
        self._show_messages(view, now)
        view.set_state(self._phase or running.state)
        if self._state.pending or final:
            self._state.pending = 0
            self._state.log.changed(running.changes)
            view.draw(self._state.frames(running.changes), now, final=final)

    def _show_messages(self, view: View, now_s: float) -> None:
        """Show the latest new message, or the latest error among them, and log the errors."""
        messages, self._messages = self._messages, []
        for text, error in messages:
            if error:
                self._state.log.add(now_s, "error", text)
        if messages:  # a later message must not hide an error
            errors = [message for message in messages if message[1]]
            text, error = (errors or messages)[-1]
            view.show_message(text, error=error)

    def _sampled(self, sample: Sample) -> None:
        self.run.append_telemetry(sample)
        self._state.sampled(sample)

    def _post(self, text: str, *, error: bool = False) -> None:
        """Keep a line for the next drawing or print; from any thread."""
        self._messages.append((text, error))

    def _post_error(self, text: str) -> None:
        self._post(text, error=True)

    def _report(self, text: str) -> None:
        """Show the error of a control at once. Earlier messages are over: none may hide it."""
        assert self.view is not None
        self._post_error(text)
        self._show_messages(self.view, 0.0 if self.running is None else self.running.clock())

    def _show_end(self, task: asyncio.Task[LoadResult]) -> None:
        # Awaiting raises the exception too; this is for a user who only watches.
        error = None if task.cancelled() else task.exception()
        if self.view is None:
            return
        if error is not None:
            self._phase = "failed"
            self.view.show_message(f"{type(error).__name__}: {error}", error=True)
        self.view.set_state(self._phase or "ended")
        self._save_picture(self.view)

    def _save_picture(self, view: View) -> None:
        """Put the last state next to the widgets, for a saved notebook, which has no widgets."""
        from workbench.dashboard.picture import picture

        data, _ = view.widget._repr_mimebundle_() or ({}, {})
        bundle = data | {"text/html": picture(view)}
        for handle in self._shown:
            if handle is not None:
                handle.update(bundle, raw=True)
