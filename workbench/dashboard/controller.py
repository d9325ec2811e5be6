"""The initial values of the dashboard's controls, and their effects on the load and the service."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from workbench.endpoints.deployed import Endpoint
from workbench.endpoints.models import context_length
from workbench.endpoints.scaling import rescaled
from workbench.errors import SettingError

if TYPE_CHECKING:
    from workbench.endpoints.remote import Remote
    from workbench.loadgen.handle import LiveLoad
    from workbench.workload.spec import LoadSpec

MAX_OUTPUT_TOKENS = 1024
"""The end of the slider for output tokens, if the model's context allows it."""


@dataclass(frozen=True)
class ScalingInForce:
    """The scaling of the running service; `min_replicas` cannot be changed here."""

    target_ongoing_requests: float
    max_replicas: int
    min_replicas: int


@dataclass(frozen=True)
class Settings:
    """The values of the controls, and their limits. Without `scaling` there is nothing to scale.

    `rate` and `max_rate` are in requests/s, `burstiness` is the shape of the gamma distribution
    of the gaps (None for even gaps).
    """

    rate: float
    max_rate: float
    burstiness: float | None
    output_tokens: int
    max_output_tokens: int
    scaling: ScalingInForce | None = None


class PostMessage(Protocol):
    """Shows a line to the user; from any thread."""

    def __call__(self, text: str, *, error: bool = False) -> None:
        """Show `text`, marked if it is an error."""


class Controller:
    """Applies the controls to the load and the service. Each method may raise a WorkbenchError.

    Attributes:
        running: The load, once it has started.
        rescaling: The latest change of scaling, running or finished.
    """

    def __init__(
        self,
        endpoint: Remote,
        load: LoadSpec,
        *,
        max_rate: float | None = None,
        begin: Callable[[], None],
        post: PostMessage,
    ) -> None:
        """`max_rate` is by default twice the plan's peak; `begin` starts the load."""
        self.max_rate = max_rate or 2 * peak_rate(load)
        self.running: LiveLoad | None = None
        self.rescaling: asyncio.Task[None] | None = None
        self._endpoint, self._load = endpoint, load
        self._begin, self._post = begin, post

    def settings(self) -> Settings:
        """Return the settings of the load and the service as they are now.

        Raises:
            EndpointGoneError: If nothing answers at the endpoint.
        """
        arrivals, prompts, endpoint = self._load.arrivals, self._load.prompts, self._endpoint
        longest_prompt = getattr(prompts.input, "high", 1) if prompts.kind == "random" else 1
        output = int(getattr(prompts.output, "high", 1))
        context = context_length(endpoint) or MAX_OUTPUT_TOKENS + longest_prompt
        return Settings(
            rate=arrivals.segments()[0].from_rate if hasattr(arrivals, "segments") else 0.0,
            max_rate=self.max_rate,
            burstiness=getattr(arrivals, "burstiness", None),
            output_tokens=output,
            max_output_tokens=max(output, min(context - longest_prompt, MAX_OUTPUT_TOKENS)),
            scaling=self.scaling(),
        )

    def scaling(self) -> ScalingInForce | None:
        """Return the scaling in force; None if this process did not deploy the service."""
        if not isinstance(self._endpoint, Endpoint):
            return None
        scaling = self._endpoint.spec.models[0].scaling
        return ScalingInForce(
            scaling.target_ongoing_requests, scaling.max_replicas, scaling.min_replicas
        )

    @property
    def plan_s(self) -> float | None:
        """The duration of the plan in seconds; None if it has no end."""
        segments: Any = getattr(self._load.arrivals, "segments", tuple)()
        ends = [self._load.duration_s or math.inf, sum(piece.duration_s for piece in segments)]
        return min(ends) if segments and min(ends) < math.inf else None

    @property
    def applying(self) -> bool:
        """Whether a change of scaling is being applied."""
        return self.rescaling is not None and not self.rescaling.done()

    def start(self) -> None:
        """Start the load, or resume it after a pause."""
        if self.running is None:
            self._begin()
        else:
            self.running.resume()

    def pause(self) -> None:
        """Send no further requests until `start`."""
        self._started().pause()

    def stop(self) -> None:
        """End the load."""
        self._started().stop()

    def set_rate(self, rate: float) -> None:
        """Send `rate` requests/s from now on, in place of the plan."""
        applied = self._started().set_rate(rate)
        self._post(f"Rate set to {applied:g} requests/s" + (" (capped)" if applied < rate else ""))

    def set_burstiness(self, burstiness: float | None) -> None:
        """Set the shape of the gamma distribution of the gaps; None for even gaps."""
        self._started().set_burstiness(burstiness)

    def set_output_tokens(self, tokens: int) -> None:
        """Request `tokens` output tokens in each further request."""
        self._started().set_output_tokens(tokens)

    def rescale(self, target_ongoing_requests: float, max_replicas: int) -> None:
        """Change the scaling of the running service in the background.

        Raises:
            SettingError: For an invalid scaling, or while an earlier change is being applied.
        """
        assert isinstance(self._endpoint, Endpoint)
        scaling = {
            "target_ongoing_requests": target_ongoing_requests,
            "max_replicas": max_replicas,
        }
        rescaled(self._endpoint.spec, scaling)  # an invalid scaling is reported at once
        if self.applying:
            raise SettingError("a change of scaling is being applied: wait until it is done")
        self.rescaling = asyncio.get_running_loop().create_task(self._rescale(scaling))

    async def _rescale(self, scaling: dict[str, Any]) -> None:
        text = ", ".join(f"{name} = {value:g}" for name, value in scaling.items())
        endpoint: Any = self._endpoint
        if self.running is not None and self.running.state != "ended":
            self.running.log_change("scaling", note=text)
        self._post(f"Applying {text}")
        try:
            await asyncio.to_thread(endpoint.rescale, progress=lambda _: None, **scaling)
        except Exception as error:
            self._post(f"Could not apply {text}: {error}", error=True)
            return
        self._post(f"The service now runs with {text}")

    def _started(self) -> LiveLoad:
        if self.running is None:
            raise SettingError("the load has not started: press Start")
        return self.running


def peak_rate(load: LoadSpec) -> float:
    """Return the highest rate of the plan in requests/s."""
    arrivals: Any = load.arrivals
    return float(max(max(piece.from_rate, piece.to_rate) for piece in arrivals.segments()))
