"""What this machine's processor is good at."""

from __future__ import annotations

from functools import cache
from pathlib import Path

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
