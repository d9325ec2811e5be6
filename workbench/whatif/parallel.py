"""Call a function for many values at the same time: in threads, or on a Ray cluster.

The compiled simulator does not hold Python's global lock, so threads use all cores.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar, get_args

from workbench.errors import SettingError
from workbench.whatif.progress import Progress

T = TypeVar("T")
R = TypeVar("R")
Parallel = Literal["auto", "ray", "threads", "off"]

CHUNKS_PER_WORKER = 4
"""Tasks for each CPU: few enough that their start is cheap, enough to keep all CPUs busy."""


def run_parallel(
    function: Callable[[T], R], values: Sequence[T], parallel: Parallel, progress: Progress
) -> list[R]:
    """Return the results in the order of the values.

    Raises:
        SettingError: `parallel` is unknown, or `"ray"` without a connection to a cluster.
    """
    if parallel not in get_args(Parallel):
        raise SettingError(
            f"parallel must be one of {', '.join(get_args(Parallel))}, got {parallel!r}"
        )
    if parallel == "ray" and not _is_connected():
        raise SettingError(
            'parallel = "ray" needs a connection to a Ray cluster; deploy a service, connect with '
            'ray.init, or use "threads"'
        )
    if parallel == "ray" or (parallel == "auto" and _has_several_nodes()):
        return _on_cluster(function, values, progress)
    workers = 1 if parallel == "off" else min(len(values), len(os.sched_getaffinity(0)))
    if workers <= 1:
        return _one_by_one(function, values, progress)
    return _in_threads(function, values, workers, progress)


def _is_connected() -> bool:
    """Return whether this process is connected to a Ray cluster, without importing Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _has_several_nodes() -> bool:
    if not _is_connected():
        return False
    import ray

    return sum(bool(node["Alive"]) for node in ray.nodes()) > 1


def _one_by_one(function: Callable[[T], R], values: Sequence[T], progress: Progress) -> list[R]:
    results = []
    for value in values:
        results.append(function(value))
        progress.add(1)
    return results


def _in_threads(
    function: Callable[[T], R], values: Sequence[T], workers: int, progress: Progress
) -> list[R]:
    # The first call compiles the functions; the others would only wait for it.
    results = _one_by_one(function, values[:1], progress)
    with ThreadPoolExecutor(workers) as pool:
        for result in pool.map(function, values[1:]):
            results.append(result)
            progress.add(1)
    return results


def _on_cluster(function: Callable[[T], R], values: Sequence[T], progress: Progress) -> list[R]:
    import ray

    workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    size = max(1, -(-len(values) // (CHUNKS_PER_WORKER * workers)))
    chunks = [values[start : start + size] for start in range(0, len(values), size)]
    # Without CPUs of their own, tasks run also where replicas have reserved all of them.
    task: Any = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(_chunk)
    shared = ray.put(function)
    results: dict[int, list[R]] = {}
    waiting = list(enumerate(chunks))
    running: dict[Any, int] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            number, chunk = waiting.pop(0)
            running[task.remote(shared, chunk)] = number
        (done,), _ = ray.wait(list(running))
        number = running.pop(done)
        results[number] = ray.get(done)
        progress.add(len(results[number]))
    return [result for number in range(len(chunks)) for result in results[number]]


def _chunk(function: Callable[[T], R], values: Sequence[T]) -> list[R]:
    return [function(value) for value in values]
