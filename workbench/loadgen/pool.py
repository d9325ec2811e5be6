"""The load workers of one load: started, asked for reports, and stopped together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.loadgen.workers import WorkerHandle, clock_epoch_s, start_workers

if TYPE_CHECKING:
    from workbench.clock import Clock
    from workbench.endpoints.remote import Remote
    from workbench.loadgen.worker import WorkerReport
    from workbench.records import LoadChange

STOP_TIMEOUT_S = 5.0


class WorkerPool:
    """The load workers of one load."""

    def __init__(self) -> None:
        self.handles: list[WorkerHandle] = []

    async def start(self, target: Remote, number: int, folder: Path | None, tag: str) -> None:
        """Start `number` workers with a client of `target`, and journals in a run's folder."""
        import ray

        from serving.cluster import connection
        from workbench.loadgen.worker import LoadWorker

        if connection.current() is None:
            await asyncio.to_thread(connection.connect)
        actor = ray.remote(num_cpus=0, max_concurrency=100_000)(LoadWorker)
        # In a call and not in the constructor, whose arguments the cluster keeps on record.
        workers = await start_workers(
            actor, number, lambda worker: worker.connect.remote(target.connection)
        )
        self.handles = [WorkerHandle(worker) for worker in workers]
        await asyncio.gather(
            *(
                handle.open_journal(folder, f"{tag}-{number}")
                for number, handle in enumerate(self.handles)
            )
        )

    async def epochs_s(self, clock: Clock) -> list[float]:
        """Return the zero of `clock` on each worker's own clock, in seconds."""
        return await asyncio.gather(
            *(clock_epoch_s(handle.worker, clock) for handle in self.handles)
        )

    async def apply(self, change: LoadChange) -> None:
        """Apply `change` in all live workers."""
        # A worker that has just died is noticed, and recorded, with the next reports.
        await _settle(
            handle.worker.apply.remote(change) for handle in self.handles if not handle.died
        )

    async def reports(
        self, on_death: Callable[[WorkerHandle], Awaitable[None]]
    ) -> list[WorkerReport]:
        """Return the reports of all live workers, and call `on_death` with each that died."""
        from ray.exceptions import ActorDiedError, ActorUnavailableError

        alive = [handle for handle in self.handles if not handle.died]
        answers = await _settle(handle.worker.report.remote() for handle in alive)
        for handle, answer in zip(alive, answers, strict=True):
            if isinstance(answer, ActorDiedError):
                handle.died = True
                await on_death(handle)
            elif isinstance(answer, ActorUnavailableError):
                continue  # Not known to be dead: ask again.
            elif isinstance(answer, BaseException):
                raise answer
        return _without_failures(answers)

    async def stop(self) -> list[WorkerReport]:
        """Cut what is in progress and return the last reports."""
        workers = [handle.worker for handle in self.handles]
        await asyncio.wait_for(_settle(worker.stop.remote() for worker in workers), STOP_TIMEOUT_S)
        return _without_failures(await _settle(worker.report.remote() for worker in workers))

    async def close(self) -> None:
        """Delete the journals, because all records are kept, and end the workers."""
        import ray

        workers = [handle.worker for handle in self.handles]
        await _settle(worker.delete_journal.remote() for worker in workers)
        for worker in workers:
            ray.kill(worker)


async def _settle(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Await calls to workers. The result of a failed one is its exception."""
    return await asyncio.gather(*calls, return_exceptions=True)


def _without_failures(answers: list[Any]) -> list[WorkerReport]:
    return [answer for answer in answers if not isinstance(answer, BaseException)]
