"""Who goes first where all processors are busy: people, then clients and proxies, then engines.

An engine on a CPU takes every core there is, also while it loads. At the same niceness the load
workers beside it would send late, and measure themselves.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

CLUSTER = 15
"""Of a local cluster's session among the others."""
WORKERS = 5
"""Of Ray's workers on a local cluster: load workers, ingress, guardrail, Serve's own actors."""
ENGINES_MORE = 10
"""What a replica with an engine on a CPU adds to that."""


def lower_session_priority() -> None:
    """Let the browser and the kernel go before this session's processes.

    Linux weighs whole sessions against each other (sched(7), autogroup), and the niceness of Ray's
    workers counts within theirs alone: a dashboard would stand still while engines load.
    """
    try:
        Path("/proc/self/autogroup").write_text(str(CLUSTER))
    except OSError:
        return  # a kernel without, where niceness counts everywhere


def lower_engine_priority(accelerator: str) -> None:
    """Let the rest of the cluster go before a replica's engine, if that computes on a CPU.

    Linux counts niceness by thread: this one, which loads the engine, and the processes it starts.
    """
    if accelerator == "cpu":
        os.nice(ENGINES_MORE)


BFLOAT16 = {"avx512f", "bf16"}  # x86's wide vectors, and Arm's instructions of that name


@cache
def fast_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether bfloat16 is a processor's quicker type, by the flags Linux tells of it.

    With AVX2 alone vLLM computes it value by value, at a third of float32's speed. Where nothing is
    told, vLLM's usual type stands.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return True
    flags = {
        flag
        for line in lines
        if line.lower().startswith(("flags", "features"))
        for flag in line.partition(":")[2].split()
    }
    return not flags or bool(flags & BFLOAT16)
