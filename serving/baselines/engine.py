"""The engine's process: `python -m serving.baselines.engine DESCRIPTOR`, one end of a pipe.

It receives the spec, then jobs and the numbers of cancelled ones. It sends None or the reason why
the model could not be loaded, then lists of events, and the stats. It ends when the other end of
the pipe is closed.
"""

from __future__ import annotations

import os
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from serving.baselines.requests import BaselineStats, Event, Job
from serving.spec.baseline import BaselineSpec


def main(descriptor: int) -> None:
    """Load the model of the spec in the first message, then work until the pipe is closed."""
    connection = Connection(descriptor)
    spec = BaselineSpec(**connection.recv())
    try:
        engine, stats = _make_engine(spec, connection)
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    connection.send(stats.to_dict())
    threading.Thread(target=_receive, args=(connection, engine), daemon=True).start()
    engine.run()


def _make_engine(spec: BaselineSpec, connection: Connection) -> tuple[Any, BaselineStats]:
    import torch

    from serving.baselines.batches import Batches
    from serving.baselines.continuous import ContinuousBatches
    from serving.baselines.model_loading import load

    model = load(spec)
    stats = BaselineStats(
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        attention=spec.attention,
        threads=torch.get_num_threads() if model.device.type == "cpu" else None,
    )
    kind = ContinuousBatches if spec.strategy.kind == "continuous" else Batches
    return kind(model, spec, lambda events: _send(connection, events, stats), stats), stats


def _send(connection: Connection, events: list[Event], stats: BaselineStats) -> None:
    connection.send(events or stats.to_dict())


def _receive(connection: Connection, engine: Any) -> None:
    try:
        while True:
            message = connection.recv()
            if isinstance(message, tuple):
                engine.add(Job(*message))
            else:
                engine.cancel(message)
    except (EOFError, OSError):
        os._exit(0)  # the replica is gone, and a running batch would keep this process alive


if __name__ == "__main__":
    main(int(sys.argv[1]))
