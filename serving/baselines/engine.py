"""The engine's process: `python -m serving.baselines.engine DESCRIPTOR`, the end of a pipe.

What comes: first the spec, then jobs and the numbers of cancelled ones. What goes: first None or
why the model could not be loaded, then lists of events, and statistics for an empty list.
It ends when the other end of the pipe is closed.
"""

from __future__ import annotations

import os
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from serving.baselines.requests import Event, Job, Stats
from serving.spec.baseline import BaselineSpec


def main(descriptor: int) -> None:
    """Load what the first message says, then work until the pipe is closed."""
    connection = Connection(descriptor)
    spec = BaselineSpec(**connection.recv())
    try:
        engine, stats = _engine(spec, connection)
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    connection.send(stats.plain())
    threading.Thread(target=_listen, args=(connection, engine), daemon=True).start()
    engine.run()


def _engine(spec: BaselineSpec, connection: Connection) -> tuple[Any, Stats]:
    import torch

    from serving.baselines.batches import Batches
    from serving.baselines.continuous import ContinuousBatches
    from serving.baselines.model_loading import load

    model = load(spec)
    stats = Stats(
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        attention=spec.attention,
        threads=torch.get_num_threads() if model.device.type == "cpu" else None,
    )
    kind = ContinuousBatches if spec.strategy.kind == "continuous" else Batches
    return kind(model, spec, lambda events: _send(connection, events, stats), stats), stats


def _send(connection: Connection, events: list[Event], stats: Stats) -> None:
    if events:
        connection.send(events)
    else:
        connection.send(stats.plain())


def _listen(connection: Connection, engine: Any) -> None:
    try:
        while True:
            told = connection.recv()
            engine.add(Job(*told)) if isinstance(told, tuple) else engine.cancel(told)
    except (EOFError, OSError):
        os._exit(0)  # the replica is gone, and a batch at work would hold this process


if __name__ == "__main__":
    main(int(sys.argv[1]))
