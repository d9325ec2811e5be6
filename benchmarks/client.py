"""CPU cost of our client, scaling of its workers, and accuracy of the times it records.

The server (tests/support/scripted_server.py) and every client run in separate processes. A
client has finished its imports and first requests before anything is measured. Ours runs on uvloop,
as load workers do in Ray actors, and vLLM's on asyncio's loop, as `vllm bench serve` does. Every
figure is the median over the repeats.

Cost. The server streams 200 chunks as fast as it can, 16 streams at a time. `cpu_us_per_chunk` is
the CPU time of the client process per chunk, parsing included. `ratio_vs_vllm_bench` is that over
the CPU time of the request function of `vllm bench serve`, as the median of the ratios of pairs;
`_low` and `_high` are the extremes. Such a server sends many chunks per read (`chunks_per_read`),
so the cost per request dominates. The figures that end in `_paced` are for a server that sends a
chunk every 5 ms, as an engine does, so that each chunk is a separate read. They have no goal.

Scaling. `scaling_2_workers` is the chunks per second of two client processes over one, each with as
many streams as it can handle (`cores_1_worker` shows that the client is the limit). The server
sleeps and then sends 250 chunks in one write, so that it needs little of the two cores
(`server_cores_2_workers`). `machine_scaling_2` is the gain of two processes that only count, which
no client can exceed.

Accuracy. Two load workers send 200 requests/s (Poisson) for 10 s. An error is the difference
between the record of a request and the server's log. TTFT runs from sending the request to the
first token in the record, and from receiving the request's head to sending the first token in the
log; E2EL likewise up to the usage event; TPOT is the time between the two per token after the
first; ITL is each gap between tokens. TTFT and E2EL errors therefore include building the request
and connecting. `send_lag_p99_ms` is sent minus scheduled, and `token_count_errors` counts requests
that failed or have another number of tokens than the server's log.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import numpy as np
import psutil
import uvloop
from _report import Goal, report

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from support import scripted_server as scripted

from workbench.endpoints.connection import NO_KEY, make_connection
from workbench.loadgen.client import stream_completion
from workbench.loadgen.senders import WorkerConfig
from workbench.loadgen.worker import LoadWorker
from workbench.metrics.summary import summarize
from workbench.records import RequestRecord
from workbench.workload.arrivals import Poisson
from workbench.workload.prompt import Prompt
from workbench.workload.schedule import offsets
from workbench.workload.spec import Arrival

PROMPT = list(range(8))
TOKENS, BULK, WRITE = 200, 1000, 250
LATENCIES = ("ttft", "tpot", "itl", "e2el")
GOALS: dict[str, Goal] = {
    "cpu_us_per_chunk": {"max": 12},
    "ratio_vs_vllm_bench": {"max": 0.7},
    "scaling_2_workers": {"min": 1.8},
    **{f"{name}_error_ms_median": {"max": 1} for name in LATENCIES},
    **{f"{name}_error_ms_p99": {"max": 3} for name in LATENCIES},
    "token_count_errors": {"max": 0},
    "send_lag_p99_ms": {"max": 2},
}
Figures = dict[str, float]


async def closed_loop(call: Callable[[], Awaitable[Any]], load: dict[str, Any]) -> dict[str, Any]:
    """Run a closed loop of `call` after a warm-up; return the results and the time it took."""

    async def loop(requests: int) -> list[Any]:
        work = iter(range(requests))

        async def slot() -> list[Any]:
            return [await call() for _ in work]

        slots = await asyncio.gather(*(slot() for _ in range(load["streams"])))
        return [output for outputs in slots for output in outputs]

    await loop(2 * load["streams"])
    gc.collect()
    gc.freeze()  # as our load workers and `vllm bench serve` do
    await asyncio.sleep(load.get("start_s", 0.0) - time.perf_counter())
    started, cpu = time.perf_counter(), time.process_time()
    outputs = await loop(load["requests"])
    cpu, ended = time.process_time() - cpu, time.perf_counter()
    return {"outputs": outputs, "cpu_s": cpu, "began_s": started, "ended_s": ended}


async def ours(base_url: str, tokens: int, **load: Any) -> dict[str, Any]:
    """Run the closed loop through `workbench.loadgen.client`."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    http = DefaultAioHttpClient()
    async with AsyncOpenAI(base_url=base_url, api_key="none", http_client=http) as client:
        client = client.with_options(max_retries=0)
        fields: dict[str, Any] = {"model": "scripted", "prompt": PROMPT, "max_tokens": tokens}
        result = await closed_loop(
            lambda: stream_completion(client, clock=time.perf_counter, **fields), load
        )
    times = [record.token_times_s for record in result.pop("outputs")]
    reads = sum(len(set(request)) for request in times)
    return result | {"chunks": sum(map(len, times)), "reads": reads}


async def vllm(base_url: str, tokens: int, **load: Any) -> dict[str, Any]:
    """Run the closed loop through the request function and session of `vllm bench serve`."""
    import aiohttp
    from vllm.benchmarks.lib import endpoint_request_func as theirs

    request = theirs.RequestFuncInput(
        prompt=PROMPT,
        api_url=f"{base_url}/completions",
        prompt_len=len(PROMPT),
        output_len=tokens,
        model="scripted",
    )
    limits = {"limit": load["streams"], "limit_per_host": load["streams"]}
    connector = aiohttp.TCPConnector(**limits, ttl_dns_cache=300, keepalive_timeout=60)
    async with aiohttp.ClientSession(connector=connector, trust_env=True) as session:
        result = await closed_loop(
            lambda: theirs.async_request_openai_completions(request, session=session), load
        )
    return result | {"chunks": sum(1 + len(output.itl) for output in result.pop("outputs"))}


async def count(start_s: float) -> dict[str, Any]:
    """Only count, to show what a second process gains on this machine."""
    await asyncio.sleep(start_s - time.perf_counter())
    started = time.perf_counter()
    number = sum(1 for _ in range(20_000_000))
    return {"chunks": number, "began_s": started, "ended_s": time.perf_counter(), "cpu_s": 0}


async def open_loop(base_url: str, due_s: list[float]) -> dict[str, Any]:
    """Send requests at their scheduled times, through a load worker."""
    worker = LoadWorker()
    await worker.connect(make_connection(base_url, NO_KEY))
    prompt = Prompt(content=tuple(PROMPT), prompt_tokens=len(PROMPT), max_tokens=16)
    config = WorkerConfig("scripted", {}, f"at-{due_s[0]}", epoch_s=0, start_s=0)
    await worker.start(config, [(i, Arrival(at, (prompt,))) for i, at in enumerate(due_s)])
    records: list[RequestRecord] = []
    while not (report := await worker.report()).done:
        records += report.records
        await asyncio.sleep(0.25)
    records += report.records
    return {"records": [dataclasses.asdict(record) for record in records]}


async def ready() -> dict[str, Any]:
    """Import what the jobs need."""
    import openai  # noqa: F401

    return {}


JOBS = {job.__name__: job for job in (ours, vllm, count, open_loop, ready)}


class Worker:
    """A client process that runs one job after the other."""

    def __enter__(self) -> Worker:
        command = [sys.executable, __file__, "--role", "client"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.send("ready")
        self.result()
        return self

    def send(self, job: str, **arguments: Any) -> None:
        """Start a job."""
        print(json.dumps([job, arguments]), file=self._process.stdin, flush=True)

    def result(self) -> dict[str, Any]:
        """Wait for the job to end, and return its result."""
        for line in self._process.stdout or ():
            if line.startswith("RESULT "):
                file = Path(line.removeprefix("RESULT ").strip())
                result = dict(json.loads(file.read_text()))
                file.unlink()
                return result
        raise RuntimeError("a client ended without a result; see its error above")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()


def run_client() -> None:
    """Run the jobs of standard input, in a client process."""
    for line in sys.stdin:
        job, arguments = json.loads(line)
        # Load workers run on uvloop, as Ray's actors do; vLLM's client runs on asyncio's loop.
        run = asyncio.run if job == "vllm" else uvloop.run
        result = json.dumps(run(JOBS[job](**arguments)))
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            file.write(result)
        print("RESULT " + file.name, flush=True)


async def serve_bulk() -> None:
    """Serve 250 chunks per write, with 4 ms of sleep before each."""
    step = scripted.Step(scripted.text_chunk("t ") * WRITE, delay_s=0.004)
    end = (scripted.Step(scripted.usage(8, BULK)), scripted.Step(scripted.DONE))
    script = scripted.Script((step,) * (BULK // WRITE) + end)
    async with scripted.ScriptedServer(script, logging=False) as server:
        print(server.port, flush=True)
        await asyncio.Event().wait()


@contextmanager
def bulk_server() -> Iterator[tuple[str, psutil.Process]]:
    """Run that server in a separate process; yield its URL and its process."""
    command = [sys.executable, __file__, "--role", "server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            yield f"http://127.0.0.1:{port}/v1", psutil.Process(process.pid)
        finally:
            process.terminate()


def cost(workers: Sequence[Worker], base_url: str, requests: int) -> Figures:
    """Measure one pair: CPU time per chunk through our client, then through vLLM's."""
    cpu_us = {}
    for worker, job in zip(workers, ("ours", "vllm"), strict=True):
        worker.send(job, base_url=base_url, tokens=TOKENS, requests=requests, streams=16)
        result, expected = worker.result(), requests * TOKENS
        if result["chunks"] != expected:
            raise RuntimeError(f"{job}: chunks must be {expected}, got {result['chunks']}")
        cpu_us[job] = result["cpu_s"] / expected * 1e6
        if job == "ours":
            per_read = result["chunks"] / result["reads"]
    return {
        "cpu_us_per_chunk": cpu_us["ours"],
        "cpu_us_per_chunk_vllm": cpu_us["vllm"],
        "ratio_vs_vllm_bench": cpu_us["ours"] / cpu_us["vllm"],
        "chunks_per_read": per_read,
    }


def speed(workers: Sequence[Worker], server: psutil.Process, job: str, **load: Any) -> Figures:
    """Return chunks per second of all `workers` together, and the cores they and the server use."""
    start = time.perf_counter() + 2
    for worker in workers:
        worker.send(job, start_s=start, **load)
    time.sleep(start - time.perf_counter())
    before = server.cpu_times()
    results = [worker.result() for worker in workers]
    after = server.cpu_times()
    wall = max(r["ended_s"] for r in results) - min(r["began_s"] for r in results)
    used = after.user + after.system - before.user - before.system
    rate = sum(r["chunks"] for r in results) / wall
    cores = sum(r["cpu_s"] for r in results) / wall
    return {"rate": rate, "cores": cores, "server": used / wall}


def scaling(workers: Sequence[Worker], requests: int) -> Figures:
    """Compare two workers with one, each with `requests`, and two counting processes with one."""
    load = {"tokens": BULK, "requests": requests, "streams": 32}
    with bulk_server() as (base_url, server):
        one = speed(workers[:1], server, "ours", base_url=base_url, **load)
        two = speed(workers, server, "ours", base_url=base_url, **load)
        counted = [speed(some, server, "count")["rate"] for some in (workers[:1], workers)]
    return {
        "scaling_2_workers": two["rate"] / one["rate"],
        "machine_scaling_2": counted[1] / counted[0],
        "cores_1_worker": one["cores"],
        "server_cores_2_workers": two["server"],
        "chunks_per_s_1_worker": one["rate"],
    }


def accuracy(workers: Sequence[Worker], seconds: float, seed: int) -> Figures:
    """Compare the records of one run at 200 requests/s with the server's log."""
    rng = np.random.default_rng(seed)
    with scripted.spawn(
        *("--tokens", "16", "--ttft", "0.05", "--gap", "0.01", "--log")
    ) as base_url:
        for worker in workers:  # warm-up, so that one-time costs are not counted as errors
            worker.send("open_loop", base_url=base_url, due_s=[0.0] * 16)
            worker.result()
        start = time.perf_counter() + 1
        due = [start + at for at in offsets(Poisson(rate=200), rng, duration_s=seconds)]
        for i, worker in enumerate(workers):
            worker.send("open_loop", base_url=base_url, due_s=due[i :: len(workers)])
        rows = [record for worker in workers for record in worker.result()["records"]]
        log = {exchange.request_id: exchange for exchange in scripted.read_log(base_url)}
    records = [
        RequestRecord(**row | {"token_times_s": tuple(row["token_times_s"])}) for row in rows
    ]
    correct = [record for record in records if is_correct(record, log[record.request_id])]
    errors = [error for record in correct for error in differences(record, log[record.request_id])]
    figures = {"token_count_errors": float(len(due) - len(correct)), "requests": float(len(due))}
    figures["send_lag_p99_ms"] = summarize(records).client_health.send_lag_p99_ms or float("nan")
    for name in LATENCIES:
        values = [abs(ms) for latency, ms in errors if latency == name]
        figures[f"{name}_error_ms_median"] = float(np.median(values))
        figures[f"{name}_error_ms_p99"] = float(np.quantile(values, 0.99))
    return figures


def is_correct(record: RequestRecord, sent: scripted.Exchange) -> bool:
    """Return whether a request succeeded with as many tokens as the server sent."""
    counts = {record.output_tokens, len(record.token_times_s)}
    return record.status == "ok" and counts == {len(sent.token_sends_s)}


def differences(record: RequestRecord, sent: scripted.Exchange) -> Iterator[tuple[str, float]]:
    """Yield each latency's name and the error of our figure in ms, by the server's log."""
    ours, sends = summarize([record]), sent.token_sends_s
    usage = sent.sends_s[-2]  # the last is [DONE]
    first, end = (at - sent.received_s for at in (sends[0], usage))
    yield "ttft", ours.median_ttft_ms - first * 1e3
    yield "e2el", ours.median_e2el_ms - end * 1e3
    yield "tpot", ours.median_tpot_ms - (end - first) / (len(sends) - 1) * 1e3
    for (a, b), (c, d) in zip(pairwise(record.token_times_s), pairwise(sends), strict=True):
        yield "itl", ((b - a) - (d - c)) * 1e3


def medians(repeats: int, measure: Callable[[int], Figures]) -> Figures:
    """Return the median of each figure over the repeats, and the extremes of the ratios."""
    rows = []
    for repeat in range(repeats):
        rows.append(measure(repeat))
        text = ", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items())
        print(f"repeat {repeat + 1}: {text}", flush=True)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    figures = {name: median(values) for name, values in columns.items()}
    for name in {"ratio_vs_vllm_bench", "scaling_2_workers"} & columns.keys():
        figures |= {f"{name}_low": min(columns[name]), f"{name}_high": max(columns[name])}
    return {name: round(value, 3) for name, value in figures.items()}


def main() -> None:
    """Measure, and print a line per repeat and the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7, help="pairs of the client's cost")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of scaling and accuracy")
    parser.add_argument("--requests", type=int, default=320, help="requests of each closed loop")
    parser.add_argument("--seconds", type=float, default=10, help="seconds of the open loop")
    parser.add_argument("--role", choices=["client", "server"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        return run_client() if options.role == "client" else asyncio.run(serve_bulk())
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker()) for _ in range(2)]
        answer = ("--tokens", str(TOKENS))
        fast = stack.enter_context(scripted.spawn(*answer))
        figures = medians(options.pairs, lambda _: cost(workers, fast, options.requests))
        slow = stack.enter_context(scripted.spawn(*answer, "--gap", "0.005"))
        paced = medians(options.pairs, lambda _: cost(workers, slow, options.requests // 5))
        figures |= {f"{name}_paced": value for name, value in paced.items()}
    with Worker() as first, Worker() as second:
        both = (first, second)
        figures |= medians(options.repeats, lambda _: scaling(both, options.requests))
        figures |= medians(options.repeats, lambda seed: accuracy(both, options.seconds, seed))
    report("client", figures | {"pairs": options.pairs, "repeats": options.repeats}, GOALS)


if __name__ == "__main__":
    main()
