"""Lets a CPU worker of vLLM use Intel's matrix unit (AMX) from its first request on.

Linux grants AMX to a process that asks for it. vLLM 0.29's attention uses it without asking: if
nothing else in the process has asked before (oneDNN does at its first larger product), a short
first prompt kills the worker with SIGILL. vLLM imports a ``worker_extension_cls`` in each worker
before anything runs there.
"""

from __future__ import annotations

import torch

if torch.cpu._is_amx_tile_supported():
    torch.cpu._init_amx()


class Extension:
    """Adds nothing to the worker; only the import of this module has an effect."""
