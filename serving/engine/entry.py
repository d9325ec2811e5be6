"""The classes of the replicas, as the application names them by import path.

On a CPU, importing this module starts the fork server of a replica and only then imports vLLM, so
that both processes import it at the same time.
"""

from serving.engine.fork_server import is_wanted, start_fork_server

if is_wanted():
    start_fork_server()

from serving.engine.replica import (
    DecodeReplica,
    DirectGroupReplica,
    DirectReplica,
    EngineGroupReplica,
    EngineReplica,
    PrefillReplica,
)

__all__ = [
    "DecodeReplica",
    "DirectGroupReplica",
    "DirectReplica",
    "EngineGroupReplica",
    "EngineReplica",
    "PrefillReplica",
]
