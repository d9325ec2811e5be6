"""A replica whose capacity is its number of slots, not its share of this machine's cores."""

from __future__ import annotations

from serving.engine.variables import MIN_STEP_MS, PACED_STEPS
from serving.spec.model import ModelSpec
from workbench.errors import SettingError

WAITING_IN_ENGINE = 2
"""Requests that wait in an engine, so that a free slot is filled at once."""


def paced(model: ModelSpec, *, slots: int = 0, min_step_ms: float = 0.0) -> ModelSpec:
    """Return `model` with a limited number of slots, and engine steps of a minimum duration.

    A small model on a CPU needs a few milliseconds for a step, but a whole core. With longer steps
    its replicas leave the cores idle in between, as if each had an accelerator of its own. So a
    second replica on the same machine doubles the capacity: at most `slots` requests at a time,
    each with a token per step.

    Args:
        model: The model.
        slots: Requests that an engine computes at once (`max_num_seqs`); 0 keeps vLLM's default.
            The others wait in Serve's queue, from which a new replica takes them.
        min_step_ms: Minimum duration of a step in ms; 0 for as fast as possible.

    Raises:
        SettingError: A number is below 0.
    """
    if slots < 0 or min_step_ms < 0:
        raise SettingError(
            f"slots and min_step_ms must be at least 0, got {slots} and {min_step_ms:g}"
        )
    kwargs, env, scaling = dict(model.engine_kwargs), dict(model.env), model.scaling
    if slots:
        kwargs["max_num_seqs"] = slots
        ongoing = slots + WAITING_IN_ENGINE
        scaling = scaling.model_copy(update={"max_ongoing_requests": ongoing})
    if min_step_ms:
        kwargs["logits_processors"] = [*kwargs.get("logits_processors", ()), PACED_STEPS]
        env[MIN_STEP_MS] = f"{min_step_ms:g}"
    return model.model_copy(update={"engine_kwargs": kwargs, "env": env, "scaling": scaling})
