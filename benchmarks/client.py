"""What our client costs, whether workers scale, and whether the times it records are true.

The server is tests/support/scripted_server.py in a process of its own; every client is a process
of its
own too, ready (imports and first requests done) before anything is counted. Ours runs on uvloop, as
every load worker does (Ray's actors use it), vLLM's on asyncio's loop, as `vllm bench serve` does.
Every figure is the median over the repeats.

`cpu_us_per_chunk`: the server streams 200 chunks as fast as it can, 16 streams at a time; CPU time
of the client process, parsing included, per chunk. `ratio_vs_vllm_bench`: over the same of the
request function of `vllm bench serve`, in turn with it, median of the ratios pair by pair; `_low`
and `_high` are the extremes. A server without pause sends many chunks a read (`chunks_per_read`),
so that what a request costs decides, not a chunk. Hence the same again, `_paced`: a chunk
every 5 ms, as from an engine, each a read of its own. It has no goal.

`scaling_2_workers`: chunks per second of two client processes over one, each with all the streams
it can take (`cores_1_worker` says that it is the limit). The server sleeps, then sends 250 chunks
in one write, so that it needs little of the two cores: `server_cores_2_workers`.
`machine_scaling_2` is what two processes that only count gain over one: no client scales better.

Truth: two load workers send 200 requests/s (Poisson) for 10 s. An error is the difference between
what the record says of a request and what the server's log says of it: TTFT, from sent to the first
token, against from the request's head received to the first token's send; E2EL likewise to the
usage event's; TPOT, the time from the one to the other, per token after the first; ITL, each gap
between tokens. So TTFT and E2EL errors hold what the client needs to build and connect.
`send_lag_p99_ms` is sent minus scheduled, `token_count_errors` the requests that did not end well
or differ from the server in the number of tokens.
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

from workbench.loadgen.client import stream_completion
from workbench.loadgen.worker import LoadWorker, WorkerConfig
from workbench.metrics.summary import summarize
from workbench.records import RequestRecord
from workbench.workload.arrivals import Poisson
from workbench.workload.prompt_generator import Prompt
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


async def closed(call: Callable[[], Awaitable[Any]], load: dict[str, Any]) -> dict[str, Any]:
    """A closed loop of `call`, warmed up; what the calls gave, and the time and CPU they took."""

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
    began, cpu = time.perf_counter(), time.process_time()
    outputs = await loop(load["requests"])
    cpu, ended = time.process_time() - cpu, time.perf_counter()
    return {"outputs": outputs, "cpu_s": cpu, "began_s": began, "ended_s": ended}


async def ours(base_url: str, tokens: int, **load: Any) -> dict[str, Any]:
    """The closed loop through `workbench.loadgen.client`."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    http = DefaultAioHttpClient()
    async with AsyncOpenAI(base_url=base_url, api_key="none", http_client=http) as client:
        client = client.with_options(max_retries=0)
        fields: dict[str, Any] = {"model": "scripted", "prompt": PROMPT, "max_tokens": tokens}
        found = await closed(
            lambda: stream_completion(client, clock=time.perf_counter, **fields), load
        )
    times = [record.token_times_s for record in found.pop("outputs")]
    reads = sum(len(set(one)) for one in times)
    return found | {"chunks": sum(map(len, times)), "reads": reads}


async def vllm(base_url: str, tokens: int, **load: Any) -> dict[str, Any]:
    """The closed loop through the request function and session of `vllm bench serve`."""
    import aiohttp
    from vllm.benchmarks.lib import endpoint_request_func as theirs

    asked = theirs.RequestFuncInput(
        prompt=PROMPT,
        api_url=f"{base_url}/completions",
        prompt_len=len(PROMPT),
        output_len=tokens,
        model="scripted",
    )
    limits = {"limit": load["streams"], "limit_per_host": load["streams"]}
    connector = aiohttp.TCPConnector(**limits, ttl_dns_cache=300, keepalive_timeout=60)
    async with aiohttp.ClientSession(connector=connector, trust_env=True) as session:
        found = await closed(
            lambda: theirs.async_request_openai_completions(asked, session=session), load
        )
    return found | {"chunks": sum(1 + len(output.itl) for output in found.pop("outputs"))}


async def count(start_s: float) -> dict[str, Any]:
    """Nothing but counting, to see what a second process gains on this machine."""
    await asyncio.sleep(start_s - time.perf_counter())
    began = time.perf_counter()
    number = sum(1 for _ in range(20_000_000))
    return {"chunks": number, "began_s": began, "ended_s": time.perf_counter(), "cpu_s": 0}


async def open_loop(base_url: str, due_s: list[float]) -> dict[str, Any]:
    """Send when due, through a load worker."""
    worker = LoadWorker()
    await worker.connect(base_url, "none")
    prompt = Prompt(content=tuple(PROMPT), prompt_tokens=len(PROMPT), max_tokens=16)
    job = WorkerConfig("scripted", {}, f"at-{due_s[0]}", epoch_s=0, start_s=0)
    await worker.start(job, [(i, Arrival(at, (prompt,))) for i, at in enumerate(due_s)])
    records: list[RequestRecord] = []
    while not (found := await worker.report()).done:
        records += found.records
        await asyncio.sleep(0.25)
    records += found.records
    return {"records": [dataclasses.asdict(record) for record in records]}


async def ready() -> dict[str, Any]:
    import openai  # noqa: F401

    return {}


JOBS = {job.__name__: job for job in (ours, vllm, count, open_loop, ready)}


class Worker:
    """A client process: it does one job after the other."""

    def __enter__(self) -> Worker:
        command = [sys.executable, __file__, "--role", "client"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.send("ready")
        self.result()
        return self

    def send(self, job: str, **arguments: Any) -> None:
        """Begin the job."""
        print(json.dumps([job, arguments]), file=self._process.stdin, flush=True)

    def result(self) -> dict[str, Any]:
        """What the job gave, once it has ended."""
        for line in self._process.stdout or ():
            if line.startswith("RESULT "):
                file = Path(line.removeprefix("RESULT ").strip())
                found = dict(json.loads(file.read_text()))
                file.unlink()
                return found
        raise RuntimeError("a client ended without a result; it says above why")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()


def act() -> None:
    """A worker's side."""
    for line in sys.stdin:
        job, arguments = json.loads(line)
        # Load workers run on uvloop, as Ray's actors do; vLLM's client on asyncio's own loop.
        run = asyncio.run if job == "vllm" else uvloop.run
        result = json.dumps(run(JOBS[job](**arguments)))
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            file.write(result)
        print("RESULT " + file.name, flush=True)


async def serve_bulk() -> None:
    """A server that sleeps 4 ms before each write of 250 chunks."""
    step = scripted.Step(scripted.text_chunk("t ") * WRITE, delay_s=0.004)
    end = (scripted.Step(scripted.usage(8, BULK)), scripted.Step(scripted.DONE))
    script = scripted.Script((step,) * (BULK // WRITE) + end)
    async with scripted.ScriptedServer(script, logging=False) as server:
        print(server.port, flush=True)
        await asyncio.Event().wait()


@contextmanager
def bulk_server() -> Iterator[tuple[str, psutil.Process]]:
    """That server in a process of its own."""
    command = [sys.executable, __file__, "--role", "server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            yield f"http://127.0.0.1:{port}/v1", psutil.Process(process.pid)
        finally:
            process.terminate()


def cost(workers: Sequence[Worker], base_url: str, requests: int) -> Figures:
    """One pair: CPU per chunk through ours, then through vLLM's."""
    us = {}
    for worker, job in zip(workers, ("ours", "vllm"), strict=True):
        worker.send(job, base_url=base_url, tokens=TOKENS, requests=requests, streams=16)
        us[job] = (found := worker.result())["cpu_s"] / (requests * TOKENS) * 1e6
        if found["chunks"] != requests * TOKENS:
            raise RuntimeError(f"{job}: {found['chunks']} chunks, not {requests * TOKENS}")
        if job == "ours":
            per_read = found["chunks"] / found["reads"]
    return {
        "cpu_us_per_chunk": us["ours"],
        "cpu_us_per_chunk_vllm": us["vllm"],
        "ratio_vs_vllm_bench": us["ours"] / us["vllm"],
        "chunks_per_read": per_read,
    }


def speed(workers: Sequence[Worker], server: psutil.Process, job: str, **load: Any) -> Figures:
    """Chunks per second of all `workers` at once, and the cores that they and the server use."""
    start = time.perf_counter() + 2
    for worker in workers:
        worker.send(job, start_s=start, **load)
    time.sleep(start - time.perf_counter())
    before = server.cpu_times()
    found = [worker.result() for worker in workers]
    after = server.cpu_times()
    wall = max(one["ended_s"] for one in found) - min(one["began_s"] for one in found)
    used = after.user + after.system - before.user - before.system
    rate = sum(one["chunks"] for one in found) / wall
    cores = sum(one["cpu_s"] for one in found) / wall
    return {"rate": rate, "cores": cores, "server": used / wall}


def scaling(workers: Sequence[Worker], requests: int) -> Figures:
    """Two workers over one, each with `requests`; and two processes that only count over one."""
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


def truth(workers: Sequence[Worker], seconds: float, seed: int) -> Figures:
    """One run at 200 requests/s from all `workers`, against the server's log."""
    rng = np.random.default_rng(seed)
    with scripted.spawn(
        *("--tokens", "16", "--ttft", "0.05", "--gap", "0.01", "--log")
    ) as base_url:
        for worker in workers:  # warm up: what a process pays once is no error of a request
            worker.send("open_loop", base_url=base_url, due_s=[0.0] * 16)
            worker.result()
        start = time.perf_counter() + 1
        due = [start + at for at in offsets(Poisson(rate=200), rng, duration_s=seconds)]
        for i, worker in enumerate(workers):
            worker.send("open_loop", base_url=base_url, due_s=due[i :: len(workers)])
        found = [record for worker in workers for record in worker.result()["records"]]
        log = {exchange.request_id: exchange for exchange in scripted.read_log(base_url)}
    records = [
        RequestRecord(**one | {"token_times_s": tuple(one["token_times_s"])}) for one in found
    ]
    well = [record for record in records if is_right(record, log[record.request_id])]
    errors = [error for record in well for error in differences(record, log[record.request_id])]
    figures = {"token_count_errors": float(len(due) - len(well)), "requests": float(len(due))}
    figures["send_lag_p99_ms"] = summarize(records).client_health.send_lag_p99_ms or float("nan")
    for name in LATENCIES:
        values = [abs(ms) for latency, ms in errors if latency == name]
        figures[f"{name}_error_ms_median"] = float(np.median(values))
        figures[f"{name}_error_ms_p99"] = float(np.quantile(values, 0.99))
    return figures


def is_right(record: RequestRecord, sent: scripted.Exchange) -> bool:
    """Whether it ended well and both its counts of tokens are the server's."""
    counts = {record.output_tokens, len(record.token_times_s)}
    return record.status == "ok" and counts == {len(sent.token_sends_s)}


def differences(record: RequestRecord, sent: scripted.Exchange) -> Iterator[tuple[str, float]]:
    """Each latency and by how many ms our figure of it is off, by the server's log."""
    ours, sends = summarize([record]), sent.token_sends_s
    usage = sent.sends_s[-2]  # the last is [DONE]
    first, end = (at - sent.received_s for at in (sends[0], usage))
    yield "ttft", ours.median_ttft_ms - first * 1e3
    yield "e2el", ours.median_e2el_ms - end * 1e3
    yield "tpot", ours.median_tpot_ms - (end - first) / (len(sends) - 1) * 1e3
    for (a, b), (c, d) in zip(pairwise(record.token_times_s), pairwise(sends), strict=True):
        yield "itl", ((b - a) - (d - c)) * 1e3


def medians(repeats: int, measure: Callable[[int], Figures]) -> Figures:
    """Each figure's median over the repeats; of ratios the extremes as well."""
    found = []
    for repeat in range(repeats):
        found.append(measure(repeat))
        said = ", ".join(f"{name} {value:.4g}" for name, value in found[-1].items())
        print(f"repeat {repeat + 1}: {said}", flush=True)
    columns = {name: [one[name] for one in found] for name in found[0]}
    figures = {name: median(values) for name, values in columns.items()}
    for name in {"ratio_vs_vllm_bench", "scaling_2_workers"} & columns.keys():
        figures |= {f"{name}_low": min(columns[name]), f"{name}_high": max(columns[name])}
    return {name: round(value, 3) for name, value in figures.items()}


def main() -> None:
    """Measure, print a line a repeat, and the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7, help="of client cost")
    parser.add_argument("--repeats", type=int, default=3, help="of scaling and of truth")
    parser.add_argument("--requests", type=int, default=320, help="of each closed loop")
    parser.add_argument("--seconds", type=float, default=10, help="of the open loop")
    parser.add_argument("--role", choices=["client", "server"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        return act() if options.role == "client" else asyncio.run(serve_bulk())
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
        figures |= medians(options.repeats, lambda seed: truth(both, options.seconds, seed))
    report("client", figures | {"pairs": options.pairs, "repeats": options.repeats}, GOALS)


if __name__ == "__main__":
    main()
