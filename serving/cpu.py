"""Priorities of processes, and the CPU's native number types.

An engine on a CPU uses every core, also while it loads. At the same niceness, load workers on the
same machine would send late and measure their own delay. So clients and proxies run before engines,
and the user's own processes before both.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

SESSION_NICENESS = 15
"""Of a local cluster's session, compared with other sessions."""
WORKER_NICENESS = 5
"""Of Ray's workers on a local cluster: load workers, ingress, guardrail, Serve's own actors."""
ENGINE_NICENESS = 10
"""Added to WORKER_NICENESS for a replica whose engine computes on a CPU."""


def lower_session_priority() -> None:
    """Let the user's other sessions, such as the browser and the kernel, run first.

    Linux weighs sessions against each other (sched(7), autogroup), and the niceness of Ray's
    workers counts only within their own session. Without this, a dashboard would stall while
    engines load.
    """
    try:
        Path("/proc/self/autogroup").write_text(str(SESSION_NICENESS))
    except OSError:
        return  # A kernel without autogroups, where niceness counts between all processes.


def lower_engine_priority(accelerator: str) -> None:
    """Let the rest of the cluster run before a replica's engine, if it computes on a CPU.

    Linux counts niceness per thread. This thread loads the engine and starts its processes, which
    inherit it.
    """
    if accelerator == "cpu":
        os.nice(ENGINE_NICENESS)


BFLOAT16 = {"avx512f", "bf16"}
"""CPU flags with which bfloat16 is fast: x86's wide vectors, and Arm's bfloat16 instructions."""


@cache
def fast_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this CPU computes faster in bfloat16 than in float32, by Linux's CPU flags.

    With AVX2 alone vLLM computes bfloat16 value by value, at a third of float32's speed. Where no
    flags are listed, the answer is True: bfloat16 is vLLM's default.
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
