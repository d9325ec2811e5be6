"""A minimum duration of an engine's steps, for lessons in which several replicas share few cores.

A small model on a CPU computes a step in a few milliseconds and leaves no core idle, so a second
replica on the same cores adds little. With paced steps, a replica serves at most `max_num_seqs`
requests at a fixed speed, as on an accelerator of its own, and needs a fraction of a core.

    ModelSpec(engine_kwargs={"logits_processors": [PACED_STEPS]}, env={MIN_STEP_MS: "20"})
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from serving.compat.vllm_logits import LogitsProcessor
from serving.engine.variables import MIN_STEP_MS

if TYPE_CHECKING:
    import torch

    from serving.compat.vllm_logits import BatchUpdate


class PacedSteps(LogitsProcessor):  # type: ignore[misc]
    """Lets a step take `WORKBENCH_MIN_STEP_MS` at least. It sleeps, and changes no logits."""

    def __init__(self, config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._step_s = float(os.environ.get(MIN_STEP_MS, "0")) / 1e3
        self._ended_s = float("-inf")

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return `logits`, when the step has taken its minimum time."""
        time.sleep(max(0.0, self._ended_s + self._step_s - time.monotonic()))
        self._ended_s = time.monotonic()
        return logits

    def is_argmax_invariant(self) -> bool:
        """Return False: vLLM skips the others where every request takes the likeliest token."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Ignore which requests are in the batch."""
