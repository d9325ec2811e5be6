"""Torch's check of the CPU's vector instructions, made once per machine. Light to import.

Checked against torch 2.13. Before torch compiles code for a CPU, a process compiles and loads a
program for every set of vector instructions that the CPU reports
(``torch._inductor.cpu_vec_isa.valid_vec_isa_list``), which takes some 15 s of one core for each
folder of compiled code. ``TORCHINDUCTOR_VEC_ISA_OK=1`` skips the check, which is right where all of
them have passed it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

VARIABLE = "TORCHINDUCTOR_VEC_ISA_OK"
FOLDER_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""The folder of compiled code (``torch._inductor``)."""
TIMEOUT_S = 180.0
PASSED, FAILED = "passed\n", "failed\n"
CHECK = """
from torch._inductor import config
from torch._inductor.cpu_vec_isa import valid_vec_isa_list
passed = valid_vec_isa_list()
valid_vec_isa_list.cache_clear()
config.cpp.vec_isa_ok = True
print("passed" if passed == valid_vec_isa_list() else "failed")
"""


def skip_vector_check(folder: Path) -> None:
    """Set the variable for this process and its children, if all instructions have passed.

    The first call on a machine makes the check, and others wait for it. A check that cannot be made
    is left to torch.

    Args:
        folder: Keeps the result, for each version of torch, compiler and kind of CPU.
    """
    if VARIABLE in os.environ:
        return
    with (folder / f"vector-check-{_fingerprint()}").open("a+") as result:
        fcntl.flock(result, fcntl.LOCK_EX)
        result.seek(0)
        text = result.read()
        if not text:
            text = _check(folder)
            result.write(text)
    if text == PASSED:
        os.environ[VARIABLE] = "1"


def adopt_vector_check() -> None:
    """Apply the variable where torch read its configuration before the variable was set."""
    config = sys.modules.get("torch._inductor.config")
    if config is not None and os.environ.get(VARIABLE) == "1":
        config.cpp.vec_isa_ok = True


def _check(folder: Path) -> str:
    """Return ``PASSED`` or ``FAILED``; empty if the check cannot be made."""
    compiled = str(folder / "vector-check")
    variables = {**os.environ, FOLDER_VARIABLE: compiled}
    try:
        ran = subprocess.run(
            [sys.executable, "-c", CHECK],
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    finally:
        shutil.rmtree(compiled, ignore_errors=True)
    return ran.stdout if ran.stdout in (PASSED, FAILED) else ""


def _fingerprint() -> str:
    """Return a hash of all that the result depends on."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or ""
    built = os.stat(compiler).st_mtime_ns if compiler else 0
    parts = [version("torch"), os.path.realpath(compiler), str(built), *_cpu_flags()]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def _cpu_flags() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
