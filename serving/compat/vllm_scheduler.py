"""Schedulers of vLLM 0.29.0 whose statistics all go to the Python client of a shared core.

vLLM's own send them to whichever client has an output in a step, so each would see a part of them.
Importing this module imports vLLM.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs

from serving.compat.vllm_rust import PYTHON_CLIENT


def report_to_python(config: Any) -> None:
    """Choose the scheduler of a ``vllm.config.SchedulerConfig``, as vLLM itself would."""
    config.scheduler_cls = (
        ReportingAsyncScheduler if config.async_scheduling else ReportingScheduler
    )


def redirect_statistics(outputs: dict[int, Any]) -> dict[int, Any]:
    """Move the statistics of a step to the outputs of the Python client.

    Args:
        outputs: A step's ``EngineCoreOutputs`` by client, of which at most one has
            ``scheduler_stats``.
    """
    for client, found in list(outputs.items()):
        if client != PYTHON_CLIENT and found.scheduler_stats is not None:
            own = outputs.setdefault(PYTHON_CLIENT, EngineCoreOutputs())
            own.scheduler_stats, found.scheduler_stats = found.scheduler_stats, None
            if not found.outputs and found.finished_requests is None:
                del outputs[client]  # The Rust front end takes an empty message for a damaged one.
    return outputs


class ReportingScheduler(Scheduler):  # type: ignore[misc]
    """The scheduler without asynchronous scheduling."""

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, Any]:
        """Return the outputs of a step by client."""
        return redirect_statistics(super().update_from_output(*args, **kwargs))


class ReportingAsyncScheduler(AsyncScheduler):  # type: ignore[misc]
    """The scheduler with asynchronous scheduling."""

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, Any]:
        """Return the outputs of a step by client."""
        return redirect_statistics(super().update_from_output(*args, **kwargs))
