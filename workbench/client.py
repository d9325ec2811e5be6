"""Send single requests, or a closed loop of them, from this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench._lazy import lazy_names

if TYPE_CHECKING:
    from workbench.clock import start_clock as start_clock
    from workbench.loadgen.client import stream_chat as stream_chat
    from workbench.loadgen.client import stream_completion as stream_completion
    from workbench.loadgen.closed_loop import closed_loop as closed_loop
    from workbench.metrics.health import LoopWatch as LoopWatch
    from workbench.records import RequestRecord as RequestRecord
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
