"""Small services and calibrations for the simulator, whose times can be computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

import workbench as wb
from workbench.whatif.calibration import Calibration
from workbench.whatif.workload import Workload, single_requests


def calibration(**fields: Any) -> Calibration:
    """Return a replica whose steps take one second, whatever is in them."""
    defaults = {
        "model": wb.ModelSpec().model_id,
        "device": "a device",
        "step_s": 1.0,
        "prefill_token_s": 0.0,
        "running_s": 0.0,
        "kv_blocks": 1000,
        "block_size": 16,
    }
    return Calibration(**(defaults | fields))


def service(
    *, routing: Any = None, engine: dict[str, Any] | None = None, **scaling: Any
) -> wb.ServiceSpec:
    """Return a service of the embedded model."""
    bounds = wb.ScalingSpec(**scaling)
    model = wb.ModelSpec(routing=routing, engine_kwargs=engine or {}, scaling=bounds)
    return wb.ServiceSpec(model=model)


def requests(*rows: tuple[float, int, int]) -> Workload:
    """Return requests of (time, prompt tokens, output tokens)."""
    due_s, prompt, output = zip(*rows, strict=True)
    return single_requests(np.array(due_s), np.array(prompt), np.array(output))
