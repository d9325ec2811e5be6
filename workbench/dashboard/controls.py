"""The dashboard's input widgets: the load, the scaling and the buttons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.dashboard.controller import Settings

GAPS = (
    ("even", None),
    ("Poisson (1)", 1.0),
    ("bursty (0.5)", 0.5),
    ("very bursty (0.2)", 0.2),
)
"""The choices of burstiness: label, and shape of the gamma distribution."""
_STYLE = {"description_width": "initial"}


class LoadControls:
    """The controls of the load: rate, gaps between requests, and output tokens."""

    def __init__(self, settings: Settings) -> None:
        import ipywidgets as widgets

        slider = {
            "style": _STYLE,
            "continuous_update": False,
            "layout": widgets.Layout(width="300px"),
        }
        self.rate = widgets.FloatSlider(
            value=min(settings.rate, settings.max_rate),
            min=0,
            max=settings.max_rate,
            step=max(0.1, round(settings.max_rate / 100, 1)),
            description="Requests/s",
            readout_format=".1f",
            tooltip="Request rate. Moving the slider replaces the plan.",
            **slider,
        )
        self.burstiness = widgets.Dropdown(
            options=_gaps(settings.burstiness),
            value=settings.burstiness,
            description="Gaps",
            tooltip="Gaps between requests: the shape of their gamma distribution.",
            layout=widgets.Layout(width="210px"),
            style=_STYLE,
        )
        self.output_tokens = widgets.IntSlider(
            value=settings.output_tokens,
            min=1,
            max=settings.max_output_tokens,
            description="Output tokens",
            tooltip="Output tokens of each further request.",
            **slider,
        )

    def all(self) -> list[Any]:
        """Return the widgets in order."""
        return [self.rate, self.burstiness, self.output_tokens]


def _gaps(burstiness: float | None) -> tuple[tuple[str, float | None], ...]:
    if burstiness in dict(GAPS).values():
        return GAPS
    return (*GAPS, (f"{burstiness:g}", burstiness))


class ScalingControls:
    """The controls of the autoscaler, shown for a service that we deployed."""

    def __init__(self, settings: Settings) -> None:
        import ipywidgets as widgets

        self.shown = settings.max_replicas is not None
        if not self.shown:
            return
        self.target = widgets.BoundedFloatText(
            value=settings.target_ongoing_requests,
            min=0.1,
            max=4096,
            step=0.5,
            description="target_ongoing_requests",
            tooltip="Requests per replica that the autoscaler aims at.",
            layout=widgets.Layout(width="235px"),
            style=_STYLE,
        )
        self.max_replicas = widgets.BoundedIntText(
            value=settings.max_replicas,
            min=1,
            max=1024,
            description="max_replicas",
            tooltip="Maximum number of replicas that the autoscaler starts.",
            layout=widgets.Layout(width="150px"),
            style=_STYLE,
        )

    def all(self) -> list[Any]:
        """Return the widgets in order; none if there is nothing to scale."""
        return [self.target, self.max_replicas] if self.shown else []


def make_buttons(*, scaling: bool) -> dict[str, Any]:
    """Return the buttons by name; `apply` only if the service can be scaled."""
    buttons = {
        "start": _button("Start", "Start the load, or resume it after a pause.", "play", "success"),
        "pause": _button("Pause", "Stop sending for now.", "pause"),
        "stop": _button("Stop", "End the load. Results are kept.", "stop", "danger"),
    }
    if scaling:
        tip = "Change the scaling of the running service. Its replicas keep running."
        buttons["apply"] = _button("Apply", tip, "check")
    return buttons


def _button(label: str, tooltip: str, icon: str, style: str = "") -> Any:
    import ipywidgets as widgets

    button = widgets.Button(description=label, tooltip=tooltip, icon=icon, button_style=style)
    button.layout.width = "90px"
    return button
