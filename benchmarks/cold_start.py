"""Time to the first token of `deploy()` on an idle cluster, compared with bare vLLM.

The two sides take turns. Bare vLLM is timed from the start of its process to its first streamed
token. Ours runs in a separate process, as in a user's kernel. It starts a Ray cluster, waits, and
times `deploy()` to the first streamed token of the endpoint: first before Ray Serve has started
(`idle`, for `cold_start_ratio`), and again after that service was deleted, with Serve running
(`serve_running`). `delete_s` is the time to delete the service and stop the cluster. One start of
bare vLLM fills the file caches first, and does not count.

The stages, from the times at which processes were created, add up to the total:

    submit_s       (ours) deploy() checks, imports and starts Ray Serve, and submits the service
    schedule_s     (ours) Serve and Ray create the replica's process
    server_s       the process with the HTTP server imports vLLM, up to the engine core's process
    core_s         the engine core imports vLLM, up to the worker's process
    engine_s       the worker imports vLLM and loads the model, the engine warms up, the server
                   answers, and `deploy()` returns
    first_token_s  one request
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from _report import report
from _vllm import BareServer, add_model_arguments, model_spec, prepare
from openai import OpenAI

import workbench as wb
from serving.cluster import connection
from serving.cluster.supervisor import descendants

GOALS = {"cold_start_ratio": {"max": 1.5}, "delete_s": {"max": 5.0}}
OURS = ("submit_s", "schedule_s", "server_s", "core_s", "engine_s", "first_token_s")
BARE = OURS[2:]
TOTALS = ("bare_s", "idle_s", "serve_running_s", "delete_s")
SETTLE_S = 8
Row = dict[str, float]


def main() -> None:
    """Measure, and print a line per repeat and the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    prepare()
    model = model_spec(options)
    if options.ours:
        print(json.dumps(our_cold_starts(model)))
        return
    bare_cold_start(model)
    rows = []
    for repeat in range(1, options.repeats + 1):
        rows.append(bare_cold_start(model) | in_own_process())
        text = ", ".join(f"{name} {rows[-1][name]:.1f}" for name in TOTALS)
        print(f"repeat {repeat}: {text}", flush=True)
    report("cold_start", summary(rows), GOALS)


def summary(rows: list[Row]) -> Row:
    """Return medians over the repeats, also of the ratios."""
    figures: Row = {"repeats": len(rows)}
    for name, case in (("", "idle"), ("_serve_running", "serve_running")):
        ratios = [row[f"{case}_s"] / row["bare_s"] for row in rows]
        figures[f"cold_start_ratio{name}"] = round(median(ratios), 3)
    return figures | {name: round(median(row[name] for row in rows), 2) for name in rows[0]}


def in_own_process() -> Row:
    """Measure our cold starts in a new Python process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--ours"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            output = process.communicate()[0]
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode:
        raise RuntimeError(f"our side ended with status {process.returncode}")
    row: Row = json.loads(output.splitlines()[-1])
    return row


def bare_cold_start(model: wb.ModelSpec) -> Row:
    """Return the seconds from starting bare vLLM to its first token, and of each stage."""
    started = now()
    with BareServer(model) as server:
        server.wait()
        answers = now()
        first_token(OpenAI(base_url=f"{server.base_url}/v1", api_key="none"), model)
        ended = now()
        _, core, worker = engine_births(server.processes())
        marks = [started, core, worker, answers, ended]
        return {"bare_s": ended - started} | stages("bare", BARE, marks)


def our_cold_starts(model: wb.ModelSpec) -> Row:
    """Return the seconds of both cases on one new cluster, of each stage, and of the deletion."""
    spec = wb.ServiceSpec(port=0, model=model)
    cluster = connection.connect(spec)
    time.sleep(SETTLE_S)
    _, row = timed("idle", spec, cluster)
    # Not earlier: it reads variables that connect() sets, and its import is part of deploy().
    from ray import serve

    serve.delete(spec.name)
    time.sleep(SETTLE_S)
    endpoint, again = timed("serve_running", spec, cluster)
    started = now()
    endpoint.delete()
    return row | again | {"delete_s": now() - started}


def timed(case: str, spec: wb.ServiceSpec, cluster: connection.Cluster) -> tuple[wb.Endpoint, Row]:
    """Deploy, and return the seconds to the first token and of each stage."""
    messages: list[tuple[float, str]] = []
    started = now()
    endpoint = wb.deploy(spec, progress=lambda line: messages.append((now(), line)))
    ready = now()
    first_token(endpoint.client, spec.model)
    ended = now()
    submitted = next(at for at, line in messages if "starting Ray Serve" not in line)
    assert cluster.supervisor is not None
    replica, core, worker = engine_births(descendants(cluster.supervisor.pid))
    marks = [started, min(submitted, replica), replica, core, worker, ready, ended]
    return endpoint, {f"{case}_s": ended - started} | stages(case, OURS, marks)


def first_token(client: OpenAI, model: wb.ModelSpec) -> None:
    """Wait for the first streamed token."""
    stream = client.completions.create(
        model=model.model_id, prompt="Prefill is", max_tokens=2, stream=True
    )
    next(iter(stream))


def stages(case: str, names: tuple[str, ...], marks: list[float]) -> Row:
    """Return the seconds between neighbouring marks, one name for each gap."""
    gaps = zip(names, marks, marks[1:], strict=False)
    return {f"{case}_{name}": end - start for name, start, end in gaps}


def now() -> float:
    """Return the seconds of the clock by which the kernel dates processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def engine_births(processes: list[int]) -> tuple[float, float, float]:
    """Return when an engine's server, core and first worker were created, by process titles.

    With vLLM's `ray` and `uni` executors no process has a worker's title. The core's time takes its
    place then, so that the worker's share belongs to the next stage.
    """
    core = next(pid for pid in processes if title(pid).startswith("VLLM::EngineCore"))
    workers = [born(pid) for pid in processes if title(pid).startswith("VLLM::Worker")]
    return born(parent(core)), born(core), min(workers, default=born(core))


def title(pid: int) -> str:
    """Return a process's title as `ps` shows it; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def parent(pid: int) -> int:
    """Return the id of a process's parent."""
    return int(_stat(pid)[1])


def born(pid: int) -> float:
    """Return when a process was created, on the clock of `now`, to 10 ms."""
    # psutil.Process.create_time adds the boot time in whole seconds, which is up to 1 s off.
    return int(_stat(pid)[19]) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


if __name__ == "__main__":
    main()
