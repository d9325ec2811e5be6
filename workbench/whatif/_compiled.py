"""Compile functions with numba and keep the machine code between processes.

The functions do not count references to arrays: the caller of a simulation holds all tables until
it has ended, and counting took more than half of the time. So they cannot create arrays, except
those marked `allocating`.

numba keeps the code of a function until the file of that function changes, although a function
contains the code of those that it calls. So the folder of the kept code depends on all sources of
this package.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import numba

F = TypeVar("F", bound=Callable[..., object])


COMPILING = "compiling the simulator, once per machine and version; this takes about 20 seconds ..."


@cache
def _folder() -> str:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return str(root / "llm-serving-workbench" / f"numba-{numba.__version__}-{digest[:16]}")


def announce_compilation(function: Callable[..., object]) -> None:
    """Print a line to standard error if the first call of a function will compile it."""
    if getattr(function, "signatures", True):
        return  # loaded, or compilation is switched off
    folder = Path(numba.config.CACHE_DIR or _folder())
    module = function.__module__.rpartition(".")[2]
    if not any(folder.glob(f"**/{module}.*{function.__name__}-*.nbc")):
        print(COMPILING, file=sys.stderr, flush=True)


def compiled(function: F) -> F:
    """Return the function compiled, for other compiled functions and for Python."""
    return _compiled(function, {"_nrt": False, "nogil": True})


def allocating(function: F) -> F:
    """Return the function compiled like `compiled`, but it may create arrays."""
    return _compiled(function, {"_nrt": True})


def inner(function: F) -> F:
    """Return the function compiled for other compiled functions only, which is faster to compile.

    With compilation switched off (`NUMBA_DISABLE_JIT=1`) Python calls it too.
    """
    options = {"_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return _compiled(function, options)


def _compiled(function: F, options: dict[str, bool]) -> F:
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = before or _folder()
    try:
        fast: F = numba.njit(cache=True, error_model="numpy", **options)(function)
    except RuntimeError:  # no folder can be written
        fast = numba.njit(error_model="numpy", **options)(function)
    finally:
        numba.config.CACHE_DIR = before
    return fast
