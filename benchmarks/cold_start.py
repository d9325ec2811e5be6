"""Time to the first token of `deploy()` on an idle cluster, compared with bare vLLM.

The two sides take turns. Bare vLLM is timed from the start of its process to its first streamed
token. Ours runs in a separate process, as in a user's kernel. It starts a Ray cluster, waits, and
times `deploy()` to the first streamed token of the endpoint: first before Ray Serve has started
(`idle`, for `cold_start_ratio`), and again after that service was deleted, with Serve running
(`serve_running`). `delete_s` is the time to delete the service and stop the cluster. One start of
bare vLLM fills the file caches first, and does not count.

The parts of each start, from the steps that its processes note (`_start_parts.py`), add up to the
total. They are printed as a table of medians before the result.

`--no-warm-up` leaves the first start out, for a machine on which the same model has just run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

from _report import Goal, report
from _start_parts import PARTS, Steps, noting, now, parts, table
from _vllm import BareServer, add_model_arguments, model_spec, prepare
from openai import OpenAI

import workbench as wb
from serving.cluster import connection

GOALS: dict[str, dict[str, Goal]] = {
    "cpu": {"cold_start_ratio": {"max": 1.5}, "delete_s": {"max": 5.0}},
    "gpu": {"cold_start_ratio_serve_running": {"max": 0.8}, "serve_running_s": {"max": 60}},
}
CASES = {"bare": "bare vLLM", "idle": "ours", "serve_running": "ours, Serve running"}
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
    parser.add_argument("--no-warm-up", action="store_true", help="the file caches are filled")
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    prepare()
    model = model_spec(options)
    with noting() as take:
        if options.ours:
            print(json.dumps(our_cold_starts(model, take)))
            return
        if not options.no_warm_up:
            bare_cold_start(model, take)
        rows = []
        for repeat in range(1, options.repeats + 1):
            rows.append(bare_cold_start(model, take) | in_own_process())
            text = ", ".join(f"{name} {rows[-1][name]:.1f}" for name in TOTALS)
            print(f"repeat {repeat}: {text}", flush=True)
    figures = summary(rows)
    print(table({title: of_case(figures, case) for case, title in CASES.items()}), flush=True)
    report("cold_start", figures, GOALS[options.accelerator])


def of_case(figures: Row, case: str) -> Row:
    """Return the parts of one kind of start."""
    named = {part: f"{case}_{part}_s" for part in PARTS}
    return {part: figures[name] for part, name in named.items() if name in figures}


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


def bare_cold_start(model: wb.ModelSpec, take: Callable[[], Steps]) -> Row:
    """Return the seconds from starting bare vLLM to its first token, and of each part."""
    started = now()
    with BareServer(model) as server:
        server.wait()
        ready = now()
        first_token(OpenAI(base_url=f"{server.base_url}/v1", api_key="none"), model)
        ended = now()
        return named("bare", parts(take(), started, ready, ended), ended - started)


def our_cold_starts(model: wb.ModelSpec, take: Callable[[], Steps]) -> Row:
    """Return the seconds of both cases on one new cluster, of each part, and of the deletion."""
    spec = wb.ServiceSpec(port=0, model=model)
    cluster = connection.connect(spec)
    time.sleep(SETTLE_S)
    _, row = timed("idle", spec, take)
    # Not earlier: it reads variables that connect() sets, and its import is part of deploy().
    from ray import serve

    serve.delete(spec.name)
    time.sleep(SETTLE_S)
    endpoint, again = timed("serve_running", spec, take)
    started = now()
    endpoint.delete()
    assert cluster.ours
    return row | again | {"delete_s": now() - started}


def timed(case: str, spec: wb.ServiceSpec, take: Callable[[], Steps]) -> tuple[wb.Endpoint, Row]:
    """Deploy, and return the seconds to the first token and of each part."""
    messages: list[tuple[float, str]] = []
    started = now()
    endpoint = wb.deploy(spec, progress=lambda line: messages.append((now(), line)))
    ready = now()
    first_token(endpoint.client, spec.model)
    ended = now()
    submitted = next(at for at, line in messages if "starting Ray Serve" not in line)
    return endpoint, named(case, parts(take(), started, ready, ended, submitted), ended - started)


def named(case: str, seconds: Row, total: float) -> Row:
    """Return the seconds under the names of the result."""
    return {f"{case}_s": total} | {f"{case}_{part}_s": took for part, took in seconds.items()}


def first_token(client: OpenAI, model: wb.ModelSpec) -> None:
    """Wait for the first streamed token."""
    stream = client.completions.create(
        model=model.model_id, prompt="Prefill is", max_tokens=2, stream=True
    )
    next(iter(stream))


if __name__ == "__main__":
    main()
