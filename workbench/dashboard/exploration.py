"""Sliders that redraw a simulated load: what other settings and prices would do.

exploration = wb.whatif.explore(spec, trace, calibration)
exploration.box            # as the last line of a cell
exploration.settings()     # in a later cell: what the sliders say, for endpoint.rescale
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from serving.spec.service import ServiceSpec
from workbench.clock import running_loop
from workbench.dashboard.widgets import ack_widget_messages
from workbench.figures.style import VERMILLION
from workbench.figures.whatif import day_traces, simulated_day
from workbench.metrics.slo import SLO
from workbench.whatif.calibration import Calibration
from workbench.whatif.result import SECONDS_PER_DAY, Simulation
from workbench.whatif.simulator import simulate
from workbench.whatif.sweeps import with_scaling
from workbench.whatif.workload import Workload

if TYPE_CHECKING:
    from workbench.cost.prices import Prices
    from workbench.workload.spec import LoadSpec
    from workbench.workload.trace_request import TraceRequest

DEBOUNCE_S = 0.15
"""Seconds without a move of a slider after which the load is simulated again."""

_STYLE = {"description_width": "210px"}


class Exploration:
    """The sliders, the figures of the simulation and their drawing, in `box`.

    Attributes:
        box: The widgets, to show in a cell.
        simulation: The simulation that is shown.
    """

    def __init__(
        self,
        spec: ServiceSpec,
        workload: Workload,
        calibration: Calibration,
        *,
        slo: SLO | None,
        replica_hour: float,
        seed: int,
    ) -> None:
        import ipywidgets as widgets
        import plotly.graph_objects as go

        self._spec, self._workload, self._calibration = spec, workload, calibration
        self._slo, self._seed = slo, seed
        self._timer: Any = None
        self.sliders = _sliders(spec, calibration, replica_hour)
        self.readings = widgets.HTML()
        self.simulation = self._simulated()
        self.figure = go.FigureWidget(simulated_day(self.simulation))
        self._show_readings()
        for slider in self.sliders.values():
            slider.observe(self._moved, names="value")
            ack_widget_messages(slider)
        wrap = widgets.Layout(flex_flow="row wrap")
        controls = widgets.HBox(list(self.sliders.values()), layout=wrap)
        self.box = widgets.VBox([controls, self.readings, self.figure])

    def settings(self) -> dict[str, Any]:
        """Return the fields of `ScalingSpec` that the sliders set."""
        replicas = self.sliders["replicas"].value
        names = ("target_ongoing_requests", "upscale_delay_s", "downscale_delay_s")
        return {name: self.sliders[name].value for name in names} | {
            "min_replicas": replicas[0],
            "max_replicas": replicas[1],
        }

    def redraw(self) -> None:
        """Simulate with the values of the sliders, and draw."""
        self._timer = None
        self.simulation = self._simulated()
        with self.figure.batch_update():
            for drawn, (_, trace) in zip(
                self.figure.data, day_traces(self.simulation), strict=True
            ):
                drawn.x, drawn.y = trace["x"], trace["y"]
        self._show_readings()

    def _moved(self, change: dict[str, Any]) -> None:
        loop = running_loop()
        if loop is None:
            self.redraw()
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(DEBOUNCE_S, self.redraw)

    def _simulated(self) -> Simulation:
        start_s = self.sliders["start_s"].value
        calibration = self._calibration.model_copy(update={"start_s": (start_s,)})
        spec = with_scaling(self._spec, self.settings())
        return simulate(spec, self._workload, calibration, seed=self._seed, token_times=False)

    def _show_readings(self) -> None:
        summary = self.simulation.summary(self._slo)
        replica_hours = self.simulation.replica_seconds().total / 3600
        days = self.simulation.duration_s / SECONDS_PER_DAY
        per_day = replica_hours / days * self.sliders["price"].value if days else 0.0
        parts = [
            f"${per_day:,.2f} per day",
            f"{replica_hours:,.1f} replica-hours",
            f"{len(self.simulation.decisions())} decisions",
            summary.headline(),
        ]
        text = html.escape(" · ".join(parts), quote=False)
        if marks := self.simulation.marks:
            doubts = html.escape("; ".join(marks), quote=False)
            text += f'<br><span style="color:{VERMILLION}">doubtful: {doubts}</span>'
        self.readings.value = text


def explore(
    spec: ServiceSpec,
    load: LoadSpec | Workload | Iterable[TraceRequest],
    calibration: Calibration,
    *,
    slo: SLO | None = None,
    prices: Prices | None = None,
    seed: int = 0,
) -> Exploration:
    """Return sliders for the autoscaler, the cold start and the price that redraw a simulation.

    Args:
        spec: The service; the sliders start at its settings.
        load: A load, the requests of a trace, or a `Workload`.
        calibration: The constants of a replica.
        slo: The bounds for attainment.
        prices: Gives the price of a replica that its slider starts at; default: $1 per hour.
        seed: The seed of every simulation.

    Raises:
        SettingError: The load cannot be sent, or the setting cannot be simulated.
    """
    length = spec.model.max_model_len or calibration.max_model_len
    workload = Workload.of(load, max_model_len=length)
    price = prices.replica_hour(spec.model) if prices else 1.0
    return Exploration(spec, workload, calibration, slo=slo, replica_hour=price, seed=seed)


def _sliders(spec: ServiceSpec, calibration: Calibration, price: float) -> dict[str, Any]:
    import ipywidgets as widgets

    scaling, given = spec.model.scaling, calibration.start_s
    start_s = sum(given) / len(given) if given else 0.0
    target, most = scaling.target_ongoing_requests, max(4 * price, 1.0)
    layout = {"style": _STYLE, "layout": widgets.Layout(width="440px")}
    # A slider needs bounds that its first value is in.
    least = 0 if scaling.min_replicas == 0 else 1
    return {
        "target_ongoing_requests": widgets.FloatSlider(
            value=target,
            min=min(0.1, target),
            max=min(float(scaling.max_ongoing_requests), max(16.0, 4 * target)),
            step=0.1,
            description="target_ongoing_requests",
            **layout,
        ),
        "replicas": widgets.IntRangeSlider(
            value=(scaling.min_replicas, scaling.max_replicas),
            min=least,
            max=max(8, 2 * scaling.max_replicas),
            description="min_replicas, max_replicas",
            **layout,
        ),
        "upscale_delay_s": _seconds("upscale_delay_s", scaling.upscale_delay_s, layout),
        "downscale_delay_s": _seconds("downscale_delay_s", scaling.downscale_delay_s, layout),
        "start_s": _seconds("Cold start (s)", start_s, layout),
        "price": widgets.FloatSlider(
            value=price,
            min=0,
            max=most,
            step=most / 200,
            description="$ per replica-hour",
            readout_format=".3f",
            **layout,
        ),
    }


def _seconds(label: str, value: float, layout: dict[str, Any]) -> Any:
    import ipywidgets as widgets

    most = max(600.0, 2 * value)
    return widgets.FloatSlider(
        value=value, min=0, max=most, step=1, description=label, readout_format=".0f", **layout
    )
