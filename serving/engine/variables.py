"""Names that a specification uses to change how an engine runs."""

from __future__ import annotations

PACED_STEPS = "serving.engine.pace:PacedSteps"
"""The logits processor that gives each step a minimum duration (`engine_kwargs`)."""
MIN_STEP_MS = "WORKBENCH_MIN_STEP_MS"
"""The environment variable with that duration, in ms (`env`)."""
