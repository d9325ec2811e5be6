"""Two hours of mixed load on both paths, with a random fault every three minutes.

Streams of two tenants, whole answers and aborted streams go to a direct service and to a pipeline
on one cluster. After a first quarter without faults, one of the faults below is injected every
three minutes (in a shorter test, at every sixth of it). The order follows from `--seed`. The last
line has:

- `failed_outside`: failed requests that were in progress between no fault and its recovery
- `records_lost`: requests that ended and are missing from the journals
- `memory_ratio`: memory per process at the end over the first quarter, of the worst role
- `files_left`, `tasks_left`, `sockets_left`: above the level before the load, 15 s after its end
- `recovered_s_FAULT`: seconds until both services were complete and answered for 5 s
- `ttft_p99_drift`: p99 of TTFT in the last quarter over the first, outside the faults

SOAK_S=300 shortens it to five minutes. A plot goes to docs/soak.svg, if Chromium is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import shutil
import signal
import socket
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import psutil
from _report import Goal, report
from _soak import LEVELS, Fault, Request, Sample, figures, plot, reasons
from _vllm import prepare

import workbench as wb
from serving.quotas.actor import end_ledger

DURATION_S = 7200.0
FAULT_EVERY_S = 180.0
SAMPLE_EVERY_S = 5.0
STEADY_S = 5.0
SETTLE_S = 15.0
RECOVERY_LIMIT_S = 150.0
LAST_S = 60.0
"""Seconds before the end without a new fault: an engine takes most of that to start again."""
MARK = "LLM_WORKBENCH_SOAK"
PLOT = Path(__file__).resolve().parent.parent / "docs" / "soak.svg"
TENANTS = (wb.Tenant(name="ada"), wb.Tenant(name="bob", max_concurrent_requests=32))
MODEL = wb.ModelSpec(max_model_len=512, kv_cache_gib=0.25, health_check_period_s=2)
SPECS = {
    "direct": wb.ServiceSpec(name="direct", port=0, model=MODEL, start_timeout_s=1200),
    "composed": wb.PipelineSpec(
        name="composed",
        route_prefix="/composed",
        port=0,
        models=(MODEL,),
        guardrail=wb.guardrail.PresidioGuardrail(),
        start_timeout_s=1200,
    ),
}
QUESTIONS = 500
GOALS: dict[str, Goal] = {
    "failed_outside": {"max": 0},
    "records_lost": {"max": 0},
    "not_recovered": {"max": 0},
    "memory_ratio": {"max": 1.1},
    **{f"{level}_left": {"max": 0} for level in LEVELS},
}


@dataclass
class Soak:
    """The services under test, and what has been recorded."""

    endpoints: dict[str, wb.Endpoint]
    rng: Random
    clock: Callable[[], float]
    requests: list[Request] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)

    def kill(self, name: str, number: int | None = None) -> None:
        """Kill processes of the cluster whose name or command contains `name`."""
        victims = [process for process in processes() if name in title(process)]
        if not victims:
            raise RuntimeError(f"no process {name!r} to kill")
        self.rng.shuffle(victims)
        for victim in victims[:number]:
            victim.send_signal(signal.SIGKILL)


async def proxy_killed(soak: Soak) -> None:
    """Kill HAProxy."""
    soak.kill("haproxy")


async def engine_killed(soak: Soak) -> None:
    """Kill the core process of one engine."""
    soak.kill("EngineCor", 1)


async def replica_killed(soak: Soak) -> None:
    """Kill one replica."""
    soak.kill("ray::ServeReplica", 1)


async def controller_killed(soak: Soak) -> None:
    """Kill Ray Serve's controller."""
    soak.kill("ray::ServeController")


async def quota_actor_killed(soak: Soak) -> None:
    """Kill the actor that holds the tenants' quotas of the direct service."""
    await asyncio.to_thread(end_ledger, soak.endpoints["direct"].spec.name)


async def slow_headers(soak: Soak) -> None:
    """Hold 300 connections that have sent half of a request's headers for 20 s."""
    address = urlsplit(soak.endpoints["direct"].base_url)
    connections = []
    try:
        for _ in range(300):
            connection = socket.create_connection((address.hostname, address.port), 5)
            connections.append(connection)
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: ")
        await asyncio.sleep(20)
    except OSError:
        pass  # the proxy refuses further ones
    finally:
        for connection in connections:
            connection.close()


async def huge_schemas(soak: Soak) -> None:
    """Send four schemas with an enum of 60,000 strings, and leave after 2 s."""
    schema = {"enum": [f"value {number}" for number in range(60_000)]}
    extra = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    }
    for _ in range(4):
        with suppress(httpx.HTTPError):
            await post(soak.endpoints["direct"], body(soak, "direct", **extra), timeout_s=2)


async def keys_changed(soak: Soak) -> None:
    """Add a tenant to each service, and remove it again, while streams are in progress."""
    for tenants in ((*TENANTS, wb.Tenant(name="eve")), TENANTS):
        for endpoint in soak.endpoints.values():
            await asyncio.to_thread(redeploy, endpoint, tenants)


FAULTS: tuple[Callable[[Soak], Awaitable[None]], ...] = (
    proxy_killed,
    engine_killed,
    replica_killed,
    controller_killed,
    quota_actor_killed,
    slow_headers,
    huge_schemas,
    keys_changed,
)


def redeploy(endpoint: wb.Endpoint, tenants: tuple[wb.Tenant, ...]) -> None:
    """Deploy the same service with other tenants."""
    key = endpoint.api_key.get_secret_value()
    wb.deploy(endpoint.spec, api_key=key, tenants=tenants, progress=lambda _: None)


def main() -> None:
    """Run the soak test, and print the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    duration = float(os.environ.get("SOAK_S", DURATION_S))
    parser.add_argument("--seconds", type=float, default=duration, help="duration (SOAK_S or 7200)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults' order (0)")
    names = [fault.__name__ for fault in FAULTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="faults to inject")
    parser.add_argument("--plot", type=Path, default=PLOT, help="SVG file (docs/soak.svg)")
    options = parser.parse_args()
    prepare()
    os.environ[MARK] = str(os.getpid())
    direct = wb.deploy(SPECS["direct"], tenants=TENANTS)
    key = direct.api_key.get_secret_value()
    with direct, wb.deploy(SPECS["composed"], api_key=key, tenants=TENANTS) as composed:
        start = time.monotonic()
        soak = Soak(
            {"direct": direct, "composed": composed},
            Random(options.seed),
            lambda: time.monotonic() - start,
        )
        values = asyncio.run(run(soak, options.seconds, options.only))
    for line in reasons(soak.requests, soak.faults):
        print(line, flush=True)
    save(plot(soak.requests, soak.faults, soak.samples), options.plot)
    report("soak", values, GOALS)


async def run(soak: Soak, seconds: float, names: list[str]) -> dict[str, Any]:
    """Warm up, measure the idle level, send the load with the faults, and return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        await send(soak, min(30.0, seconds / 10), Path(folder) / "warm-up", None)
        await asyncio.sleep(SETTLE_S)
        before = sample(0.0)
        soak.requests.clear()
        soak.ended.clear()
        start = soak.clock()
        lost = await send(soak, seconds, Path(folder) / "load", names)
        await asyncio.sleep(SETTLE_S)
        idle = (before, sample(soak.clock()))
    shift(soak, start)
    return figures(soak.requests, soak.faults, soak.samples, idle, seconds) | {"records_lost": lost}


def shift(soak: Soak, start: float) -> None:
    """Let all times begin with the load."""
    soak.requests[:] = [
        replace(
            request,
            sent_s=request.sent_s - start,
            first_s=request.first_s and request.first_s - start,
            end_s=request.end_s - start,
        )
        for request in soak.requests
    ]
    soak.samples[:] = [replace(one, time_s=one.time_s - start) for one in soak.samples]
    for fault in soak.faults:
        fault.at_s -= start
        fault.recovered_s = fault.recovered_s and fault.recovered_s - start


async def send(soak: Soak, seconds: float, folder: Path, faults: list[str] | None) -> int:
    """Send the load for a time; return how many records are missing from the journals.

    Args:
        soak: The services.
        seconds: How long.
        folder: Where the journals are written.
        faults: The faults to inject; None for neither faults nor samples.
    """
    runs, loads, spec = [], [], streams(folder)
    for path, tenant in itertools.product(soak.endpoints, ("ada", "bob")):
        target = soak.endpoints[path].as_tenant(tenant)
        runs.append(wb.Run.create(folder, {"path": path, "tenant": tenant}))
        on_record = partial(keep, soak, path)
        load = wb.start_load(
            target,
            spec,
            run=runs[-1],
            clock=soak.clock,
            progress=None,
            on_record=on_record,
        )
        loads.append(load)
    others = [own(soak, path) for path in soak.endpoints]
    if faults is not None:
        others += [watch(soak), break_things(soak, seconds, faults)]
    tasks = [asyncio.ensure_future(task) for task in others]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for load in loads:
        load.stop("the soak test is over")
    await asyncio.gather(*loads)
    for result in results:
        if isinstance(result, Exception):
            raise result
    journals = {record.request_id for run in runs for record in run.records()}
    return len(soak.ended - journals)


def streams(folder: Path) -> wb.LoadSpec:
    """Return a load of texts, which a guardrail can read; `folder` gets a file with them."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "questions.jsonl"
    lines = (json.dumps({"prompt": f"{n}. What is batching?"}) for n in range(QUESTIONS))
    file.write_text("\n".join(lines))
    return wb.LoadSpec(
        arrivals=wb.ClosedLoop(max_concurrency=2, think_s=0.5),
        prompts=wb.FilePrompts(path=str(file), output=48),
        count=100_000,
        timeout_s=120,
    )


def keep(soak: Soak, path: str, record: Any) -> None:
    """Keep the record of a stream, unless the end of the test interrupted it."""
    soak.ended.add(record.request_id)
    if record.status != "cancelled" and record.sent_s is not None and record.end_s is not None:
        ok = record.status == "ok"
        error = None if ok else f"{record.status}: {record.error}"
        times = (record.sent_s, record.first_token_s, record.end_s)
        soak.requests.append(Request(path, "stream", *times, ok, error))


async def own(soak: Soak, path: str) -> None:
    """Send whole answers and aborted streams in turn."""
    for kind in itertools.cycle(("whole", "aborted")):
        sent = soak.clock()
        try:
            error = await (whole if kind == "whole" else aborted)(soak, path)
        except httpx.HTTPError as failure:
            error = repr(failure)
        soak.requests.append(Request(path, kind, sent, None, soak.clock(), error is None, error))
        await asyncio.sleep(0.5)


async def whole(soak: Soak, path: str) -> str | None:
    """Send a request without streaming; return what failed."""
    response = await post(soak.endpoints[path], body(soak, path))
    return None if response.status_code == 200 else f"{response.status_code}: {response.text[:200]}"


async def aborted(soak: Soak, path: str) -> str | None:
    """Send a stream, and leave after its third event; return what failed."""
    endpoint = soak.endpoints[path]
    url = f"{endpoint.base_url}/chat/completions"
    message = body(soak, path, stream=True, max_tokens=200)
    async with (
        httpx.AsyncClient(timeout=120) as client,
        client.stream("POST", url, json=message, headers=authorized(endpoint)) as answer,
    ):
        if answer.status_code != 200:
            return f"{answer.status_code}: {(await answer.aread())[:200]!r}"
        lines = 0
        async for line in answer.aiter_lines():
            lines += line.startswith("data:")
            if lines == 3:
                return None
    return "the stream ended before its third event"


def body(soak: Soak, path: str, **fields: Any) -> dict[str, Any]:
    """Return the body of a chat request."""
    message = {"role": "user", "content": f"{soak.rng.random()} What is batching?"}
    model = soak.endpoints[path].model_id
    return {"model": model, "messages": [message], "max_tokens": 32, **fields}


def authorized(endpoint: wb.Endpoint) -> dict[str, str]:
    """Return the header with the owner's key."""
    return {"authorization": f"Bearer {endpoint.api_key.get_secret_value()}"}


async def post(
    endpoint: wb.Endpoint, message: dict[str, Any], timeout_s: float = 120
) -> httpx.Response:
    """Send a chat request on a connection of its own."""
    async with httpx.AsyncClient(timeout=timeout_s) as client:
        url = f"{endpoint.base_url}/chat/completions"
        return await client.post(url, json=message, headers=authorized(endpoint))


async def break_things(soak: Soak, seconds: float, names: list[str]) -> None:
    """Inject the faults, each once in a random order, then again in another."""
    faults, end_s = {fault.__name__: fault for fault in FAULTS}, soak.clock() + seconds
    every = min(FAULT_EVERY_S, seconds / 6)
    await asyncio.sleep(seconds / 4)
    for name in order(soak.rng, names):
        if end_s - soak.clock() < LAST_S:
            return
        next_s = soak.clock() + every
        fault = Fault(name, soak.clock())
        soak.faults.append(fault)
        print(f"{fault.at_s:.0f} s: {name}", flush=True)
        await faults[name](soak)
        fault.recovered_s = await recovered(soak)
        await asyncio.sleep(max(0.0, next_s - soak.clock()))


def order(rng: Random, names: list[str]) -> Iterator[str]:
    """Yield the names without end, all of them before one comes again."""
    while True:
        yield from rng.sample(names, len(names))


async def recovered(soak: Soak) -> float | None:
    """Wait until both services are complete and answer; return since when, or None."""
    started, since = soak.clock(), soak.clock()
    while soak.clock() - started < RECOVERY_LIMIT_S:
        checked = soak.clock()
        complete = await asyncio.to_thread(is_complete, soak)
        recent = [r for r in soak.requests if r.end_s >= since]
        failures = [r.end_s for r in recent if not r.ok]
        answering = {r.path for r in recent if r.ok and r.sent_s >= since}
        if not complete or failures:
            since = soak.clock() if not complete else max(failures) + 1e-3
        elif answering == set(soak.endpoints) and checked - since > STEADY_S:
            return since
        await asyncio.sleep(0.5)
    return None


def is_complete(soak: Soak) -> bool:
    """Return whether every deployment has its replicas."""
    try:
        states = [endpoint.status() for endpoint in soak.endpoints.values()]
    except Exception:  # the controller does not answer
        return False
    return all(
        deployment.target is not None and deployment.running >= deployment.target
        for state in states
        for deployment in state.deployments.values()
    )


async def watch(soak: Soak) -> None:
    """Sample the processes all the time."""
    while True:
        soak.samples += await asyncio.to_thread(sample, soak.clock())
        await asyncio.sleep(SAMPLE_EVERY_S)


def sample(time_s: float) -> list[Sample]:
    """Return a sample of each role."""
    sums: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for process in processes():
        with suppress(psutil.Error, OSError):
            sums[role(process)].append(levels(process))
    return [
        Sample(time_s, name, len(values), *map(sum, zip(*values, strict=True)))
        for name, values in sorted(sums.items())
    ]


def levels(process: psutil.Process) -> tuple[int, int, int, int]:
    """Return a process's memory, open files, threads and sockets."""
    targets = []
    for descriptor in (Path("/proc") / str(process.pid) / "fd").iterdir():
        with suppress(OSError):
            targets.append(os.readlink(descriptor))
    sockets = sum(target.startswith("socket:") for target in targets)
    return process.memory_info().rss, len(targets), process.num_threads(), sockets


def processes() -> list[psutil.Process]:
    """Return the cluster's processes, by a variable in their environment; not the load's own."""
    mark = f"{MARK}={os.getpid()}".encode()
    matching = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            environment = (Path("/proc") / str(process.pid) / "environ").read_bytes()
            if process.pid == os.getpid() or mark not in environment.split(b"\0"):
                continue
            if not any(name in title(process) for name in ("LoadWorker", "ray::IDLE")):
                matching.append(process)
    return matching


def title(process: psutil.Process) -> str:
    """Return a process's name, and its command up to the first option."""
    command = " ".join(process.cmdline()).partition(" -")[0]
    return f"{process.name()} {command}"


def role(process: psutil.Process) -> str:
    """Return the name of a process without ids, numbers and paths."""
    command = process.cmdline()[0] if process.cmdline() else ""
    name = command if command.startswith(("ray::", "VLLM::")) else process.name()
    return re.sub(r"[#:]?[0-9a-f]{8,}|\d+", "", name).strip()


def save(figure: Any, path: Path) -> None:
    """Write a figure as SVG with Chromium, or as a page without it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder:
        page_file = Path(folder) / "page.html"
        page_file.write_text(figure.to_html(include_plotlyjs=True))
        if chromium is None:
            shutil.copy(page_file, path.with_suffix(".html"))
            print(f"Chromium is missing (make browser); the plot is {path.with_suffix('.html')}")
            return
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(page_file.as_uri())
            size = json.dumps({"format": "svg", "width": 1000, "height": 760})
            image = f"Plotly.toImage(document.querySelector('.js-plotly-plot'), {size})"
            path.write_text(unquote(page.evaluate(image).partition(",")[2]) + "\n")
            browser.close()


if __name__ == "__main__":
    main()
