"""Start load workers, and recover the requests of a worker that died."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.compat.ray import HEAD_RESOURCE
from workbench.runs import journal

if TYPE_CHECKING:
    from workbench.clock import Clock
    from workbench.loadgen.senders import WorkerConfig
    from workbench.records import RequestRecord
    from workbench.workload.spec import Arrival

RECOVER_TIMEOUT_S = 30.0


@dataclass
class WorkerHandle:
    """One load worker: its actor, its node, its journal, and its share of a plan."""

    worker: Any
    node: str | None = None
    journal_path: str | None = None
    config: WorkerConfig | None = None
    share: Sequence[tuple[int, Arrival]] = field(default_factory=tuple)
    died: bool = False

    async def open_journal(self, folder: Path | None, name: str) -> None:
        """Have the worker write to the run's folder, or to a temporary file on its own machine."""
        paths = [str(Path(tempfile.gettempdir()) / f"llm-workbench-{name}.jsonl")]
        if folder is not None:
            unsaved = folder.resolve() / journal.FOLDER
            unsaved.mkdir(exist_ok=True)
            paths.insert(0, str(unsaved / f"{name}.jsonl"))
        self.journal_path = await self.worker.open_journal.remote(paths)
        self.node = await self.worker.node.remote()

    async def recover(
        self, recorded: Callable[[], Sequence[RequestRecord]], now_s: float, reason: str
    ) -> tuple[list[RequestRecord], list[RequestRecord]]:
        """Return what the dead worker had and is not `recorded`: ended requests, and cut ones.

        The journal is removed. If it is lost with its node, the plan shows what was in progress.
        """
        # Read and removed first, as a run's own records include its journals.
        ended, in_progress = await self._read_journal()
        known = {record.request_id for record in recorded()}
        if not ended and not in_progress:
            in_progress = list(self._presumed_sent(known, now_s))
        cut = [journal.failed(request, reason, now_s) for request in in_progress]
        return [record for record in ended if record.request_id not in known], cut

    async def _read_journal(self) -> tuple[list[RequestRecord], list[journal.Sent]]:
        if self.journal_path is None:
            return [], []
        path = Path(self.journal_path)
        if path.exists():
            content = journal.read(path)
            path.unlink(missing_ok=True)
            return content
        try:
            return await asyncio.wait_for(self._fetch(path), RECOVER_TIMEOUT_S)
        except Exception:
            return [], []  # Its node died with it.

    async def _fetch(self, path: Path) -> Any:
        """Read the journal on the worker's own node."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        on_its_node = NodeAffinitySchedulingStrategy(self.node, soft=False)
        read = ray.remote(journal.read).options(num_cpus=0, scheduling_strategy=on_its_node)
        return await read.remote(path)

    def _presumed_sent(self, known: set[str], now_s: float) -> Iterator[journal.Sent]:
        """Yield what was in progress by the plan: what was due, or one request per user."""
        if self.config is None:
            return
        config, users = self.config, self.config.max_concurrency
        for number, arrival in self.share:
            ids = (f"{config.tag}-{number}-{turn}" for turn in range(len(arrival.turns)))
            first = next((request_id for request_id in ids if request_id not in known), None)
            if first is None:
                continue
            due_s = None if arrival.at_s is None else config.start_s + arrival.at_s
            if (due_s is not None and due_s > now_s) or users == 0:
                return
            users = None if users is None else users - 1
            yield journal.Sent(first, due_s, None, config.model, config.call.get("tenant"))


async def clock_epoch_s(worker: Any, clock: Clock) -> float:
    """Return the zero of the run's `clock` on the worker's own clock, in seconds.

    The offset of another machine's clock is that of the fastest of five answers.
    """
    from workbench.loadgen.worker import read_clock

    offsets: list[tuple[float, float]] = []
    for _ in range(5):
        before = time.perf_counter()
        boot_id, reading = await worker.clock.remote()
        after = time.perf_counter()
        if boot_id == read_clock()[0]:
            return time.perf_counter() - clock()
        offsets.append((after - before, reading - (before + after) / 2))
    return time.perf_counter() - clock() + min(offsets)[1]


async def start_workers(
    actor: Any, number: int, prepare: Callable[[Any], Awaitable[None]]
) -> list[Any]:
    """Start `number` actors away from replicas, and `prepare` each.

    An actor whose node dies meanwhile starts where Ray chooses.
    """
    from ray.exceptions import ActorUnschedulableError, RayActorError

    async def start(strategy: Any) -> Any:
        worker = actor.options(scheduling_strategy=strategy).remote()
        try:
            await prepare(worker)
        except (ActorUnschedulableError, RayActorError):
            worker = actor.remote()
            await prepare(worker)
        return worker

    strategies = await asyncio.to_thread(away_from_replicas, number)
    return await asyncio.gather(*(start(strategy) for strategy in strategies))


def away_from_replicas(number: int) -> list[Any]:
    """Return Ray's scheduling strategy for each of `number` load workers.

    The nodes with the fewest replicas share them; of those the head, which has the proxy, comes
    last. The strategies are hard: Ray ignores a soft one when two actors start at once.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from serving.deploy import status

    is_head = {
        node["NodeID"]: HEAD_RESOURCE in node["Resources"] for node in ray.nodes() if node["Alive"]
    }
    nodes = least_loaded_nodes(is_head, status.replicas_by_node())
    return [
        NodeAffinitySchedulingStrategy(node, soft=False) for node in islice(cycle(nodes), number)
    ]


def least_loaded_nodes(is_head: dict[str, bool], replicas: Counter[str]) -> list[str]:
    """Return the nodes for load workers, given all nodes (and whether each is the head)."""
    rank = {node: (replicas[node], head) for node, head in is_head.items()}
    return [node for node in rank if rank[node] == min(rank.values())]
