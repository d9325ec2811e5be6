"""Notes when the steps of an engine's start begin and end, in every process that starts it.

Python imports this module first if its folder is in `PYTHONPATH`. It appends a line of JSON per
step to the file that `LLM_WORKBENCH_START_STEPS` names: the process, the step, and the time of
`CLOCK_BOOTTIME`. Without the variable it does nothing.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

FILE = os.environ.get("LLM_WORKBENCH_START_STEPS")
WATCHED: dict[str, tuple[str, ...]] = {
    "serving.engine.entry": (),
    "serving.engine.replica": ("EngineReplica.__init__", "EngineReplica.on_engine_started"),
    "serving.engine.warmup": ("warm_up",),
    "serving.compat.vllm_preload": (),
    "vllm.entrypoints.openai.api_server": (),
    "vllm.v1.engine.async_llm": ("AsyncLLM.__init__",),
    "vllm.v1.engine.core": ("EngineCoreProc.__init__",),
    "vllm.v1.worker.cpu_worker": ("CPUWorker.init_device", "CPUWorker.compile_or_warm_up_model"),
    "vllm.v1.worker.gpu_worker": (
        "Worker.init_device",
        "Worker.load_model",
        "Worker.compile_or_warm_up_model",
    ),
}
"""Modules whose import is noted, and the functions in them whose calls are."""


def note(step: str) -> None:
    """Append a step of this process to the file."""
    assert FILE is not None
    at = time.clock_gettime(time.CLOCK_BOOTTIME)
    line = json.dumps({"pid": os.getpid(), "step": step, "at": at}) + "\n"
    descriptor = os.open(FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def noted(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return the function, or coroutine function, with its start and end noted."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        note(f"{name} begins")
        try:
            return function(*args, **kwargs)
        finally:
            note(f"{name} ends")

    @functools.wraps(function)
    async def await_call(*args: Any, **kwargs: Any) -> Any:
        note(f"{name} begins")
        try:
            return await function(*args, **kwargs)
        finally:
            note(f"{name} ends")

    return await_call if inspect.iscoroutinefunction(function) else call


class NotingLoader(Loader):
    """A module's loader that notes the import and replaces the watched functions."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, and replace the watched functions."""
        note(f"{module.__name__} begins")
        self._loader.exec_module(module)
        note(f"{module.__name__} ends")
        for path in WATCHED[module.__name__]:
            owner, _, name = path.rpartition(".")
            holder = getattr(module, owner) if owner else module
            setattr(holder, name, noted(getattr(holder, name), path))


class Finder(MetaPathFinder):
    """Finds the watched modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the specification of a watched module, with a loader that notes its import."""
        if fullname not in WATCHED:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = NotingLoader(spec.loader)
        return spec


if FILE:
    sys.meta_path.insert(0, Finder())
