"""A load and a cluster that are computed, for a dashboard in a browser without an engine.

`scripted(dashboard)` replaces the load generator and the telemetry of one dashboard. The service is
a queue whose replicas complete `RATE` requests per second each. It starts a replica when requests
wait and stops it when there are none. The clock may run faster than real time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

from workbench.dashboard import dashboard as module
from workbench.loadgen.handle import LiveLoad, LoadResult
from workbench.metrics.health import ClientHealth
from workbench.records import (
    DecisionSample,
    DeploymentSample,
    LoadChange,
    ReplicaSample,
    RequestRecord,
)
from workbench.telemetry import sampler
from workbench.workload.rate_curve import RateCurve

RATE, START_S, TICK_S, TOKENS = 2.5, 12.0, 0.25, 32


class ScriptedService:
    """Replicas that start, serve a queue and stop, in steps of `TICK_S` on the run's clock."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.started: dict[str, tuple[float, float]] = {}  # since when, and running from when
        self.queue: deque[float] = deque()
        self.idle_s = self.credit = 0.0
        self.created = self.number = self.target = 0

    def running(self, now: float) -> list[str]:
        return [name for name, (_, ready) in self.started.items() if ready <= now]

    def step(self, now: float, due: float) -> list[RequestRecord]:
        """Add the due requests, complete what the replicas can, and return what was completed."""
        self.credit += due
        while self.credit >= 1:
            self.queue.append(now)
            self.credit -= 1
        served = round(len(self.running(now)) * RATE * TICK_S * 2) / 2
        ended = [self.queue.popleft() for _ in range(min(len(self.queue), int(served + 0.5)))]
        self.idle_s = 0.0 if self.queue or ended else self.idle_s + TICK_S
        return [self._record(sent, now) for sent in ended]

    def _record(self, sent: float, now: float) -> RequestRecord:
        self.number += 1
        itl_s = 0.012 + 0.004 * (self.number % 5)
        first = max(sent + 0.06 + 0.01 * (self.number % 7), now - TICK_S)
        times = tuple(first + itl_s * token for token in range(TOKENS))
        failed = self.number % 97 == 0
        return RequestRecord(
            request_id=f"r{self.number}",
            scheduled_s=sent,
            sent_s=sent + 0.002,
            first_token_s=None if failed else times[0],
            end_s=times[-1],
            token_times_s=() if failed else times,
            prompt_tokens=None if failed else 64,
            output_tokens=None if failed else TOKENS,
            status="error" if failed else "ok",
            error="ServerError: 503 Service Unavailable" if failed else None,
            model="m",
            tenant=None,
        )

    def samples(self, now: float, deployment: str) -> list[Any]:
        """Scale, and return what the telemetry would sample at `now`."""
        running, before = self.running(now), self.target
        want = min(self.most, max(len(self.queue) // 8 + 1, self.target)) if self.queue else before
        if self.idle_s > 8 and running:
            want = len(running) - 1
            self.idle_s = 4.0
        while len(self.started) < want:
            self.created += 1
            self.started[f"{'abcdefgh'[self.created % 8]}{self.created}k3x9z"] = (
                now,
                now + START_S,
            )
        gone = list(self.started)[want:]
        for name in gone:
            del self.started[name]
        self.target = want
        starting = len(self.started) - len(self.running(now))
        counts = {"running": len(self.running(now)), "starting": starting, "stopping": len(gone)}
        found: list[Any] = [
            DeploymentSample(
                time_s=now,
                deployment=deployment,
                target=want,
                desired=len(self.queue) // 4 + (1 if self.queue else 0),
                queued_requests=float(len(self.queue)),
                **counts,
            )
        ]
        if want != before:
            found.append(
                DecisionSample(
                    time_s=now,
                    deployment=deployment,
                    from_target=before,
                    to_target=want,
                    desired=len(self.queue) // 4,
                    total_requests=float(len(self.queue)),
                    held_by="upscale_delay_s" if want > before else "downscale_delay_s",
                    wanted_s=max(0.0, now - 3),
                )
            )
        share = len(self.queue) / max(1, len(self.running(now)))
        for name, (_, ready) in self.started.items():
            up = ready <= now
            busy = min(4, round(share) + (self.idle_s == 0)) if up else None
            found.append(
                ReplicaSample(
                    time_s=now,
                    deployment=deployment,
                    replica=name,
                    node="7f3a91c2d4e5f6",
                    state="running" if up else "starting",
                    running_requests=busy,
                    waiting_requests=max(0, round(share) - 4) if up else None,
                    kv_cache_usage=0.031 * busy if busy is not None else None,
                )
            )
        return found


class ScriptedLoad:
    """Takes the place of the load generator and of the telemetry."""

    def __init__(self, deployment: str, speed: float, most: int) -> None:
        self.deployment, self.speed = deployment, speed
        self.service = ScriptedService(most)
        self.sink: Any = lambda sample: None
        self.running: Any = None

    def start_live_load(self, target: Any, load: Any, **options: Any) -> LiveLoad:
        begun = time.perf_counter()
        self.running = LiveLoad(
            0,
            lambda: (time.perf_counter() - begun) * self.speed,
            load=load,
            max_rate=options["max_rate"],
        )
        self.running._task = asyncio.get_running_loop().create_task(self._play(options))
        return self.running

    async def _play(self, options: dict[str, Any]) -> LoadResult:
        running, run = self.running, options["run"]
        curve = running._curve = RateCurve(running.load.arrivals.segments(), 1.0)
        running.start_s, running.state = 1.0, "running"
        self._log(run, LoadChange(1.0, "start", load=running.load.model_dump(mode="json")))
        now, sampled = 1.0, 0.0
        while running._stopped is None:
            while now + TICK_S > running.clock():
                await asyncio.sleep(0.02)
            now += TICK_S
            for change in running._requested:
                self._log(run, LoadChange(now, change.what, change.value, change.note))
                curve.apply(running.changes[-1])
                if change.what in ("pause", "resume"):
                    running.state = "paused" if change.what == "pause" else "running"
            running._requested.clear()
            before = len(self.service.queue)
            ended = self.service.step(now, curve.advance(now))
            options["on_sent"]([now] * (len(self.service.queue) - before + len(ended)))
            for record in ended:
                run.append_request(record)
                running.add(record)
                options["on_record"](record)
            running.in_progress = len(self.service.queue)
            if now - sampled >= 1:
                sampled = now
                for sample in self.service.samples(now, self.deployment):
                    self.sink(sample)
            if curve.ends_s is not None and now >= curve.ends_s and not self.service.queue:
                break
        running.state = "ended"
        self._log(run, LoadChange(now, "end", note=running._stopped))
        health = ClientHealth.judge(send_lag_p99_ms=2.0, cpu_share=0.1)
        return LoadResult(running.records, health, 0, "", 0.0, running._stopped)

    def _log(self, run: Any, change: LoadChange) -> None:
        self.running.changes.append(change)
        run.append_change(change)

    def telemetry(self, endpoint: Any, clock: Any, sink: Any, **_: Any) -> ScriptedLoad:
        self.sink = sink
        return self

    def __enter__(self) -> ScriptedLoad:
        return self

    def __exit__(self, *_: object) -> None:
        return


def scripted_dashboard(
    folder: str,
    stages: list[tuple[float, float]],
    *,
    speed: float = 1.0,
    most: int = 2,
    rescale_s: float = 2.0,
) -> Any:
    """Return a dashboard whose load and cluster are scripted.

    Args:
        folder: The folder of the run.
        stages: The stages of the load: a rate in requests/s, and seconds.
        speed: Seconds on the run's clock per second of real time.
        most: The maximum number of replicas.
        rescale_s: Seconds that a change of the scaling takes.
    """
    from pydantic import SecretStr

    import workbench as wb
    from serving.cluster.connection import Cluster
    from workbench.dashboard import controller
    from workbench.endpoints.deployed import Endpoint

    scaling = wb.ScalingSpec(min_replicas=0, max_replicas=most, target_ongoing_requests=2)
    model = wb.ModelSpec(id="m", max_model_len=1024, scaling=scaling)
    spec = wb.ServiceSpec(model=model, port=8123)
    endpoint = Endpoint(spec, Cluster("127.0.0.1:6379"), 8123, SecretStr("sk-x"))
    load = wb.LoadSpec(
        arrivals=wb.Stages(stages=stages), prompts=wb.RandomPrompts(input=64, output=32)
    )

    def rescale(self: Endpoint, *, progress: Any, **changed: Any) -> None:
        from workbench.endpoints.scaling import rescaled

        time.sleep(rescale_s)
        self.spec = rescaled(self.spec, changed)
        player.service.most = changed["max_replicas"]

    player = ScriptedLoad(endpoint.deployment, speed, most)
    replaced: Any = {
        (module, "start_live_load"): player.start_live_load,
        (sampler, "Telemetry"): player.telemetry,
        (controller, "context_length"): lambda _: 1024,
        (Endpoint, "rescale"): rescale,
    }
    for (owner, name), value in replaced.items():
        setattr(owner, name, value)
    return wb.Dashboard(
        endpoint,
        load,
        wb.Run.create(folder, {}),
        prices=wb.Prices(cpu_hour=0.04),
        slo=wb.SLO(ttft_ms=1000, tpot_ms=100, target=0.9),
        settle_s=30,
    )
