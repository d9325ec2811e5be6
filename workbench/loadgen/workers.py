"""A load worker that died: what it sent, what became of it, what only the plan knows."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.compat.ray import HEAD_RESOURCE
from workbench.records import RequestRecord
from workbench.runs import journal

if TYPE_CHECKING:
    from workbench.loadgen.worker import WorkerConfig
    from workbench.workload.spec import Session

SALVAGE_S = 30.0


@dataclass
class WorkerHandle:
    """One load worker: its actor, its node, its file, and the share of the plan it was given."""

    worker: Any
    node: str | None = None
    file: str | None = None
    job: WorkerConfig | None = None
    share: Sequence[tuple[int, Session]] = field(default_factory=tuple)
    died: bool = False

    async def keep(self, run: Path | None, name: str) -> None:
        """Have the worker write to the run's folder, or on another machine to a file there."""
        run_file = [] if run is None else [str(run.resolve() / journal.FOLDER / f"{name}.jsonl")]
        if run is not None:
            (run / journal.FOLDER).mkdir(exist_ok=True)
        own = Path(tempfile.gettempdir()) / f"llm-workbench-{name}.jsonl"
        self.file = await self.worker.keep.remote([*run_file, str(own)])
        self.node = await self.worker.node.remote()

    async def left(
        self, recorded: Callable[[], Sequence[RequestRecord]], now_s: float, why: str
    ) -> tuple[list[RequestRecord], list[RequestRecord]]:
        """What the dead worker had and is not `recorded`: what ended, and what was cut short."""
        # Read and removed first: a run's own records count what lies in its folder.
        ended, under_way = await self._read()
        known = {record.request_id for record in recorded()}
        cut = [journal.failed(one, why, now_s) for one in under_way]
        if not ended and not under_way:
            cut = [journal.failed(one, why, now_s) for one in self._presumed(known, now_s)]
        return ([r for r in ended if r.request_id not in known], cut)

    async def _read(self) -> tuple[list[RequestRecord], list[journal.Sent]]:
        if self.file is None:
            return [], []
        path = Path(self.file)
        if path.exists():
            found = journal.read(path)
            path.unlink(missing_ok=True)
            return found
        try:
            return await asyncio.wait_for(self._fetch(path), SALVAGE_S)
        except Exception:
            return [], []  # its node died with it

    async def _fetch(self, path: Path) -> Any:
        """Read the file where it lies, on the worker's own node."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(self.node, soft=False)
        read = ray.remote(journal.read).options(num_cpus=0, scheduling_strategy=there)
        return await read.remote(path)

    def _presumed(self, known: set[str], now_s: float) -> Iterator[journal.Sent]:
        """From the plan alone: in an open loop what was due, in a closed one the next `slots`."""
        if self.job is None:
            return
        job, slots = self.job, self.job.max_concurrency
        for number, session in self.share:
            ids = (f"{job.tag}-{number}-{turn}" for turn in range(len(session.turns)))
            first = next((one for one in ids if one not in known), None)
            if first is None:
                continue
            due = None if session.at_s is None else job.start_s + session.at_s
            if (due is not None and due > now_s) or slots == 0:
                return
            slots = None if slots is None else slots - 1
            yield journal.Sent(first, due, None, job.model, job.call.get("tenant"))


async def start_workers(
    actor: Any, number: int, begin: Callable[[Any], Awaitable[None]]
) -> list[Any]:
    """`number` actors away from replicas, each after its `begin`.

    One whose node dies meanwhile starts where Ray sees fit.
    """
    from ray.exceptions import ActorUnschedulableError, RayActorError

    async def start(place: Any) -> Any:
        made = actor.options(scheduling_strategy=place).remote()
        try:
            await begin(made)
        except (ActorUnschedulableError, RayActorError):
            made = actor.remote()
            await begin(made)
        return made

    places = await asyncio.to_thread(away_from_replicas, number)
    return await asyncio.gather(*(start(place) for place in places))


def away_from_replicas(number: int) -> list[Any]:
    """Ray's scheduling strategy for each of `number` load workers.

    The nodes with fewest replicas share them, and of those the head, which has the proxy, comes
    last. The places are firm: a soft one Ray leaves for another when two actors start at once.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from serving.deploy import status

    alive = [node for node in ray.nodes() if node["Alive"]]
    held = status.replicas_by_node()
    places = least_loaded_nodes(
        {node["NodeID"]: HEAD_RESOURCE in node["Resources"] for node in alive}, held
    )
    return [NodeAffinitySchedulingStrategy(p, soft=False) for p in islice(cycle(places), number)]


def least_loaded_nodes(heads: dict[str, bool], replicas: Counter[str]) -> list[str]:
    """The nodes that load workers take, of all nodes (and whether each is the head)."""
    rank = {node: (replicas[node], is_head) for node, is_head in heads.items()}
    return [node for node, of in rank.items() if of == min(rank.values())]
