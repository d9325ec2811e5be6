"""Loads from Ray actors, against the real engine and against a scripted server."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import scripted_server as scripted
from support.scripted_server import tokens

from serving.errors import EndpointGoneError
from serving.models.embedded import tiny_model_path
from workbench.clock import start_clock
from workbench.endpoints.deployed import Endpoint
from workbench.endpoints.remote import Remote, remote
from workbench.errors import SettingError
from workbench.experiments.probes import make_probe, measure_curve
from workbench.experiments.search import highest_load
from workbench.loadgen.handle import LoadResult
from workbench.loadgen.start import start_load
from workbench.metrics.slo import SLO
from workbench.metrics.summary import Summary
from workbench.runs.run import Run
from workbench.workload.arrivals import ClosedLoop, Constant, Poisson
from workbench.workload.prompts import RandomPrompts
from workbench.workload.spec import LoadSpec

pytestmark = pytest.mark.engine

SMALL = RandomPrompts(input=12, output=6)


def send(target: Any, load: LoadSpec, **options: Any) -> LoadResult:
    async def go() -> LoadResult:
        return await start_load(target, load, **({"progress": None} | options))

    return asyncio.run(go())


def target_of(server: scripted.ScriptedServer) -> Remote:
    return remote(server.base_url, model="scripted", tokenizer="tiny", api_key="sk-other")


def test_load_on_the_engine_is_recorded_completely(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.create(tmp_path, {"seed": 1})
    load = LoadSpec(arrivals=Poisson(rate=8), prompts=SMALL, count=16, workers=2, seed=1)
    result = send(endpoint, load, run=run, progress="lines")
    assert result.ended_early is None
    kept = list(run.records())
    # No more than the service holds at a time, so that none is shed, however slow the machine is.
    assert len(kept) == len(result.records) == result.planned == 16
    assert {(r.status, r.prompt_tokens, r.output_tokens) for r in kept} == {("ok", 12, 6)}
    assert result.health.loop_lag_p99_ms is not None
    assert result.health.cpu_share is not None
    summary = result.summary(SLO(e2el_ms=60_000))
    assert (summary.completed, summary.slo_attainment) == (16, 1.0)
    output = capsys.readouterr().out
    assert "sending 16 requests" in output
    assert "16 of 16 requests ended" in output


def test_prompts_are_counted_as_by_the_served_tokenizer(endpoint: Endpoint) -> None:
    from transformers import AutoTokenizer  # Its import takes seconds.

    raw = AutoTokenizer.from_pretrained(str(tiny_model_path()))
    text = "What is continuous batching?"
    answer = endpoint.client.completions.create(model=endpoint.model_id, prompt=text, max_tokens=1)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(raw(text)["input_ids"])


def test_lengths_beyond_the_context_are_rejected_before_sending(
    endpoint: Endpoint,
) -> None:
    load = LoadSpec(prompts=RandomPrompts(input=1000, output=200), count=1)
    with pytest.raises(SettingError, match="1024"):
        send(endpoint, load)


def test_load_on_another_server(deployed: object) -> None:
    with scripted.threaded(tokens(5, gap_s=0.002, chat=False)) as server:
        load = LoadSpec(arrivals=Constant(rate=50), prompts=SMALL, count=40, workers=2)
        clock = start_clock()
        zero_s = time.perf_counter() - clock()  # on the server's clock
        result = send(target_of(server), load, clock=clock)
        assert len(server.log) == len(result.records) == 40
        truth = {exchange.request_id: exchange for exchange in server.log}
        assert {r.request_id for r in result.records} == set(truth)
        assert all(len(r.token_times_s) == 5 for r in result.records)
        # Two workers share one schedule, and send nothing before its time.
        due = {r.request_id: float(r.scheduled_s or 0) for r in result.records}
        assert np.diff(sorted(due.values())) == pytest.approx(1 / 50)
        assert all(e.received_s - zero_s > due[name] - 0.01 for name, e in truth.items() if name)


def test_same_seed_sends_the_same_requests(deployed: object) -> None:
    bodies = []
    for _ in range(2):
        with scripted.threaded(tokens(2, chat=False)) as server:
            load = LoadSpec(arrivals=Poisson(rate=40), prompts=SMALL, count=20, seed=5, workers=2)
            result = send(target_of(server), load)
            bodies.append((result.digest, sorted(json.dumps(e.body) for e in server.log)))
    assert bodies[0] == bodies[1]


def test_run_repeated_from_its_experiment_sends_the_same_requests(
    deployed: object, tmp_path: Path
) -> None:
    first = LoadSpec(
        arrivals=Poisson(rate=40),
        prompts=RandomPrompts(input={"kind": "uniform", "low": 3, "high": 20}, output=4),
        count=20,
        seed=9,
    )
    sent = []
    for name in ("first", "repeated"):
        load = first
        if name == "repeated":
            load = LoadSpec(**Run.open(tmp_path / "first").experiment["load"])
        run = Run.create(tmp_path, {"load": load.model_dump(mode="json")}, run_id=name)
        with scripted.threaded(tokens(2, chat=False)) as server:
            result = send(target_of(server), load, run=run)
        by_number = sorted(server.log, key=lambda e: int((e.request_id or "").split("-")[2]))
        due = sorted(r.scheduled_s or 0 for r in result.records)
        sent.append(
            (
                [json.dumps(exchange.body) for exchange in by_number],
                [round(at - due[0], 6) for at in due],
                (run.path / "plan.json").read_bytes(),
            )
        )
    assert len(sent[0][0]) == 20
    assert sent[0] == sent[1]


def test_lost_server_ends_the_load_and_keeps_its_records(deployed: object, tmp_path: Path) -> None:
    run = Run.create(tmp_path, {})

    async def go() -> LoadResult:
        with scripted.threaded(tokens(2, ttft_s=0.01, chat=False)) as server:
            load = LoadSpec(arrivals=Constant(rate=20), prompts=SMALL, count=2000)
            running = start_load(target_of(server), load, run=run, progress=None)
            while len(running.records) < 10:
                await asyncio.sleep(0.1)
        return await running

    result = asyncio.run(go())
    assert "stopped answering" in (result.ended_early or "")
    summary = result.summary()
    assert summary.completed >= 10
    assert summary.failed >= 5
    assert len(list(run.records())) == len(result.records) < 2000


def test_stopping_and_cancelling_keep_the_records(deployed: object, tmp_path: Path) -> None:
    async def go(how: str, run: Run) -> None:
        with scripted.threaded(tokens(2, chat=False)) as server:
            load = LoadSpec(arrivals=Constant(rate=20), prompts=SMALL, count=2000)
            running = start_load(target_of(server), load, run=run, progress=None)
            while len(running.records) < 10:
                await asyncio.sleep(0.1)
            if how == "stop":
                running.stop()
                assert (await running).ended_early == "stopped by the user"
            else:
                assert running._task is not None
                running._task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await running

    for how in ("stop", "cancel"):
        run = Run.create(tmp_path, {}, run_id=how)
        asyncio.run(go(how, run))
        kept = list(run.records())
        assert 10 <= len(kept) < 2000
        assert sum(r.status == "ok" for r in kept) >= 10


def test_missing_endpoint_and_wrong_key_are_rejected_before_sending(
    endpoint: Endpoint,
) -> None:
    with pytest.raises(EndpointGoneError, match="does not answer"):
        remote("http://127.0.0.1:9/v1", model="m")
    with pytest.raises(SettingError, match="key"):
        remote(endpoint.base_url, api_key="sk-wrong")
    with pytest.raises(SettingError, match="tiny-llama-glossary"):
        remote(endpoint.base_url, model="other", api_key=endpoint.api_key.get_secret_value())


def test_two_loads_share_a_clock(deployed: object) -> None:
    with scripted.threaded(tokens(2, chat=False)) as server:
        clock = start_clock()
        load = LoadSpec(arrivals=Constant(rate=50), prompts=SMALL, count=5)
        first = send(target_of(server), load, clock=clock)
        second = send(target_of(server), load, clock=clock)
        assert max(r.end_s or 0 for r in first.records) < min(r.sent_s or 0 for r in second.records)


def test_search_finds_the_capacity_of_a_server(deployed: object, tmp_path: Path) -> None:
    """It serves 40 requests of each load of a second, and sheds the rest.

    It counts them: at what rate they arrive depends on the machine.
    """
    first = 0
    with scripted.threaded(tokens(1, chat=False)) as server:

        def choose(body: dict[str, Any], n: int) -> scripted.Script:
            if n - first >= 40:
                return scripted.error(429, "too many")
            return tokens(1, ttft_s=0.1, chat=False)

        async def probe(rate: float) -> Summary:
            nonlocal first
            first = len(server.log)
            return await one_probe(rate)

        server._choose = choose
        run = Run.create(tmp_path, {})
        load = LoadSpec(arrivals=Constant(rate=1), prompts=SMALL, duration_s=1.0)
        slo = SLO(ttft_ms=60_000, target=0.9)
        one_probe = make_probe(target_of(server), load, slo, run=run, progress=None)
        search = asyncio.run(highest_load(probe, low=10, high=160, tolerance=0.25, confirmations=1))
    assert search.highest is not None
    assert 20 <= search.highest <= 55
    kept = sorted(path.name for path in (run.path / "probes").iterdir())
    assert len(kept) == len(search.probes)
    stopped = Run.open(run.path / "probes" / kept[[p.met for p in search.probes].index(False)])
    assert any(r.status == "shed" for r in stopped.records())


def test_probe_of_users_ends_once_it_must_fail(deployed: object, tmp_path: Path) -> None:
    """Six late answers, then two that never come: 2 of 8 cannot meet the SLO."""
    with scripted.threaded(
        lambda _, n: tokens(1, ttft_s=0.3 if n < 6 else 600, chat=False)
    ) as server:
        run = Run.create(tmp_path, {})
        closed = ClosedLoop(max_concurrency=2, think_s=0.01)
        load = LoadSpec(arrivals=closed, prompts=SMALL, duration_s=10, count=100)
        slo = SLO(ttft_ms=100, target=0.5)
        probe = make_probe(target_of(server), lambda *_: load, slo, run=run, progress=None)
        summary = asyncio.run(asyncio.wait_for(probe(2), 120))
    assert summary.slo_met is False
    (folder,) = (run.path / "probes").iterdir()
    kept = [r.status for r in Run.open(folder).records()]
    assert (kept.count("ok"), kept.count("cancelled")) == (6, 2)


def test_curve_has_a_row_per_rate(deployed: object, tmp_path: Path) -> None:
    with scripted.threaded(tokens(2, ttft_s=0.01, chat=False)) as server:
        run = Run.create(tmp_path, {})
        load = LoadSpec(arrivals=Constant(rate=1), prompts=SMALL, duration_s=0.5)
        probe = make_probe(target_of(server), load, SLO(ttft_ms=1000), run=run, progress=None)
        points = asyncio.run(
            measure_curve(probe, [10, 100], repeats=3, rng=np.random.default_rng(0))
        )
    assert list(points.rate) == [10, 100]  # So far apart that a pause does not reverse them.
    assert (points.output_throughput_low <= points.output_throughput).all()
    assert points.output_throughput[1] > points.output_throughput[0]


def test_closed_loop_on_the_engine(endpoint: Endpoint) -> None:
    load = LoadSpec(arrivals=ClosedLoop(max_concurrency=4), prompts=SMALL, count=12)
    result = send(endpoint, load)
    assert [r.status for r in result.records] == ["ok"] * 12
