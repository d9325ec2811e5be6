"""Run notebooks or serve them as pages, write claims and manifests, and simulate a service."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

DEMO = "02_watch_autoscaling"
RUN_ID = "name of the run folder (default: made from the time)"
RUNS = "folder of all runs (default: WORKBENCH_RUNS, else runs/ in the checkout)"
IMAGE = f"llm-serving-workbench:{version('llm-serving-workbench')}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    The status is 1 if a notebook failed, 2 if the arguments were rejected, 130 if interrupted.
    """
    from serving.errors import WorkbenchError
    from workbench.errors import SettingError

    arguments = parser().parse_args(argv)
    try:
        return int(arguments.call(arguments))
    except WorkbenchError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2 if isinstance(error, SettingError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    whole = argparse.ArgumentParser(prog="workbench", description=__doc__)
    commands = whole.add_subparsers(dest="command", required=True)
    _add_notebook_commands(commands)
    _add_claim_commands(commands)
    _add_manifest_command(commands)
    _add_whatif_command(commands)
    fields = commands.add_parser("fields", help="print the fields of a specification")
    fields.add_argument("spec", nargs="?", metavar="SPEC", help="such as ModelSpec (default: all)")
    fields.set_defaults(call=print_fields)
    return whole


def _add_notebook_commands(commands: Any) -> None:
    demo = commands.add_parser("demo", help=f"run notebook {DEMO} and summarize what happened")
    demo.add_argument(
        "--profile",
        choices=("cpu", "gpu"),
        default=None,
        help="parameters to use (default: gpu if this machine has one)",
    )
    demo.add_argument("--run-id", help=RUN_ID)
    demo.add_argument("--runs", type=Path, metavar="DIR", help=RUNS)
    demo.set_defaults(call=run_demo)

    run = commands.add_parser("run", help="run a notebook once")
    _add_parameters(run)
    run.add_argument("--run-id", help=RUN_ID)
    run.add_argument("--runs", type=Path, metavar="DIR", help=RUNS)
    run.set_defaults(call=run_once)

    sweep = commands.add_parser(
        "sweep", help="run a notebook over a grid of parameters, or continue such a sweep"
    )
    _add_parameters(sweep)
    sweep.add_argument(
        "--grid",
        action="append",
        required=True,
        metavar="NAME=V1,V2",
        help="values of a parameter; repeat the option for the product of several",
    )
    sweep.add_argument(
        "--repeats", type=int, default=1, metavar="N", help="runs of each combination (default: 1)"
    )
    sweep.add_argument(
        "--runs",
        type=Path,
        metavar="DIR",
        help="folder of the sweep (default: sweep-NOTEBOOK in the folder of runs)",
    )
    sweep.set_defaults(call=run_grid)

    app = commands.add_parser("app", help="serve a notebook as a page without code (needs Voilà)")
    _add_parameters(app)
    app.add_argument("--port", type=int, default=0, help="port (default: a free one)")
    app.add_argument("--no-browser", action="store_true", help="do not open a browser")
    app.set_defaults(call=run_app)

    repeat = commands.add_parser("repeat", help="run a notebook again with the parameters of a run")
    repeat.add_argument("run", type=Path, metavar="RUN_FOLDER", help="such as runs/RUN")
    repeat.add_argument("--runs", type=Path, metavar="DIR", help=RUNS)
    repeat.set_defaults(call=run_again)


def _add_claim_commands(commands: Any) -> None:
    archive = commands.add_parser("archive", help="archive the verdicts of finished runs")
    archive.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="finished runs")
    archive.add_argument(
        "--out", type=Path, metavar="DIR", help="folder (default: benchmarks/results/claims)"
    )
    archive.set_defaults(call=archive_runs)

    claims = commands.add_parser(
        "claims", help="write docs/claims.md and its summary in README.md from archived verdicts"
    )
    claims.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN_FOLDER",
        help="runs to archive first",
    )
    claims.set_defaults(call=write_claims)


def _add_manifest_command(commands: Any) -> None:
    manifest = commands.add_parser("manifest", help="write a specification as a cluster manifest")
    manifest.add_argument("spec", type=Path, metavar="SPEC.yaml", help="the specification")
    manifest.add_argument(
        "--kind", choices=("serve", "kuberay"), required=True, help="Serve config or RayService"
    )
    manifest.add_argument("--image", default=IMAGE, help=f"image of all pods (default: {IMAGE})")
    manifest.add_argument(
        "--key-hash",
        action="append",
        metavar="SHA256",
        help="SHA-256 of a key (default: of LLM_WORKBENCH_API_KEY, otherwise a Kubernetes secret)",
    )
    manifest.add_argument(
        "--out", type=Path, metavar="FILE", help="output file (default: standard output)"
    )
    manifest.set_defaults(call=write_manifest)


def _add_whatif_command(commands: Any) -> None:
    whatif = commands.add_parser("whatif", help="simulate a trace under many autoscaler settings")
    whatif.add_argument("trace", type=Path, metavar="TRACE", help="trace file, or a run folder")
    whatif.add_argument(
        "--calibration",
        required=True,
        metavar="FILE",
        help="constants of a replica: a JSON file, or the name of a stored calibration",
    )
    whatif.add_argument(
        "--grid",
        action="append",
        required=True,
        metavar="NAME=V1,V2",
        help="values of a field of ScalingSpec; repeat the option for the product of several",
    )
    whatif.add_argument(
        "--spec", type=Path, metavar="SPEC.yaml", help="the service (default: a ServiceSpec)"
    )
    whatif.add_argument(
        "--slo", action="append", metavar="NAME=MS", help="a bound of the SLO, such as ttft_ms=500"
    )
    whatif.add_argument(
        "--speed", type=float, default=1.0, help="divisor of the trace's times (default: 1)"
    )
    whatif.add_argument("--seed", type=int, default=0, help="seed of the simulations (default: 0)")
    whatif.add_argument(
        "--out",
        type=Path,
        default=Path("whatif.csv"),
        metavar="FILE",
        help="CSV (default: whatif.csv)",
    )
    whatif.set_defaults(call=simulate_trace)


def _add_parameters(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "notebook", help="path, name in notebooks/, or the beginning of the name, such as 01"
    )
    command.add_argument(
        "--profile", metavar="P", help="folder of params/ with parameters: cpu, gpu, ..."
    )
    command.add_argument(
        *("-f", "--file"), action="append", default=[], type=Path, help="YAML file of parameters"
    )
    command.add_argument(
        *("-p", "--parameter"),
        action="append",
        default=[],
        nargs=2,
        metavar=("NAME", "VALUE"),
        help="value of a parameter; repeat the option for several",
    )


def has_gpu() -> bool:
    """Return whether an NVIDIA GPU is available."""
    command = shutil.which("nvidia-smi")
    return (
        command is not None and subprocess.run([command, "-L"], capture_output=True).returncode == 0
    )


def run_demo(arguments: argparse.Namespace) -> int:
    """Run the demo notebook with the parameters of a profile, and print what happened."""
    from workbench.automation.demo import run_demo
    from workbench.automation.notebooks import find_notebook, read_parameters
    from workbench.session import default_run_root

    profile = arguments.profile or ("gpu" if has_gpu() else "cpu")
    path = find_notebook(DEMO)
    parameters = read_parameters(*_profile(path, profile))
    runs, name = (arguments.runs or default_run_root()).resolve(), arguments.run_id or _new_run_id()
    print(f"notebook {path.stem}, profile {profile}, run {name}\n", flush=True)
    run_demo(path, parameters, runs=runs, run_id=name)
    return 0


def _new_run_id() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def run_once(arguments: argparse.Namespace) -> int:
    """Run one notebook. Its parameters may include the location of the run."""
    from workbench.automation.notebooks import find_notebook

    path = find_notebook(arguments.notebook)
    parameters = read_arguments(path, arguments)
    root, name = parameters.pop("run_root", None), parameters.pop("run_id", None)
    runs = arguments.runs or (path.parent / root if root else None)
    return _run(path, parameters, runs, arguments.run_id or name, arguments.profile)


def run_app(arguments: argparse.Namespace) -> int:
    """Serve a notebook as a page without code, until Ctrl-C."""
    from workbench.automation.app import serve_page
    from workbench.automation.notebooks import find_notebook

    path = find_notebook(arguments.notebook)
    parameters = read_arguments(path, arguments)
    serve_page(path, parameters, port=arguments.port, browser=not arguments.no_browser)
    return 0


def run_again(arguments: argparse.Namespace) -> int:
    """Run the notebook of a run again, with the parameters in its experiment.json."""
    from workbench.automation.execution import parameters_of_run
    from workbench.automation.notebooks import parameters_of

    path, parameters = parameters_of_run(arguments.run)
    defaults = [
        name for name in parameters_of(path) if name not in (*parameters, "run_root", "run_id")
    ]
    if defaults:
        print(f"not recorded in the run, using the notebook's default: {', '.join(defaults)}")
    return _run(path, parameters, arguments.runs, None, None)


def _run(
    path: Path,
    parameters: dict[str, Any],
    runs: Path | None,
    run_id: str | None,
    profile: str | None,
) -> int:
    from workbench.automation.execution import run_notebook
    from workbench.session import default_run_root

    name = run_id or _new_run_id()
    with_profile = f", profile {profile}" if profile else ""
    print(f"notebook {path.stem}{with_profile}, run {name}\n", flush=True)
    executed = run_notebook(
        path, parameters, runs=(runs or default_run_root()).resolve(), run_id=name
    )
    print(f"\nnotebook    {display_path(executed)}")
    report = executed.parent / "report.html"
    if report.exists():
        print(f"report      {display_path(report)}")
    return 0


def run_grid(arguments: argparse.Namespace) -> int:
    """Run or continue a sweep, and print its table."""
    from workbench.automation.execution import run_notebook
    from workbench.automation.grid import Cell, make_sweep
    from workbench.automation.kept_kernel import KeptKernel
    from workbench.automation.notebooks import find_notebook
    from workbench.automation.sweep import open_sweep, run_sweep
    from workbench.automation.sweep_results import results_table
    from workbench.session import default_run_root

    path = find_notebook(arguments.notebook)
    parameters = read_arguments(path, arguments)
    sweep = make_sweep(path, arguments.grid, parameters, repeats=arguments.repeats)
    out = (arguments.runs or default_run_root() / f"sweep-{path.stem}").resolve()

    kernel = KeptKernel()

    def run(cell: Cell) -> None:
        run_notebook(path, cell.parameters, runs=out, run_id=cell.run_id, kernel=kernel)

    def notify(line: str) -> None:
        print(line, flush=True)

    with open_sweep(out, sweep), kernel:
        all_done = run_sweep(sweep, out, run=run, clock=time.monotonic, notify=notify)
    print(f"\n{results_table(out, sweep)}\n\nresults     {display_path(out / 'results.csv')}")
    return 0 if all_done else 1


def archive_runs(arguments: argparse.Namespace) -> int:
    """Archive the verdicts of finished runs."""
    from workbench.claims.table import ARCHIVE, archive

    for folder in arguments.runs:
        print(f"archived    {display_path(archive(folder, arguments.out or ARCHIVE))}")
    return 0


def write_claims(arguments: argparse.Namespace) -> int:
    """Archive the given runs, then write docs/claims.md and its summary."""
    from workbench.claims.table import PAGE, README, archive, write_table

    for folder in arguments.runs:
        print(f"archived    {display_path(archive(folder))}")
    print(f"{display_path(PAGE)}, {display_path(README)}: {write_table()} claims")
    return 0


def write_manifest(arguments: argparse.Namespace) -> int:
    """Write a Serve config or a RayService from the specification in a file."""
    from serving.deploy.manifest import read_spec, write
    from serving.spec.tenants import KEY_VARIABLE, key_hash

    spec, callers = read_spec(arguments.spec)
    key = os.environ.get(KEY_VARIABLE)
    hashes = arguments.key_hash or ([key_hash(key)] if key else [])
    callers = callers or ({"key_hashes": hashes} if hashes else {})
    text = write(arguments.kind, spec, arguments.image, callers)
    if arguments.out is None:
        print(text, end="")
    else:
        arguments.out.write_text(text, encoding="utf-8")
    return 0


def simulate_trace(arguments: argparse.Namespace) -> int:
    """Simulate a trace under every setting of a grid."""
    from workbench.whatif.command import run_whatif

    return run_whatif(arguments)


def print_fields(arguments: argparse.Namespace) -> int:
    """Print the fields of a specification, or of all."""
    import workbench
    from workbench.fields import describe

    print(describe(workbench, arguments.spec))
    return 0


def read_arguments(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters of the profile, the files and the command line; later ones win."""
    from workbench.automation.notebooks import (
        check_parameters,
        parameters_of,
        read_parameters,
        read_value,
    )

    files = [*_profile(path, arguments.profile), *arguments.file]
    parameters: dict[str, Any] = {}
    for file in files:
        parameters |= read_parameters(file)
    defaults = parameters_of(path)
    parameters |= {name: read_value(text, defaults.get(name)) for name, text in arguments.parameter}
    check_parameters(path, parameters)
    return parameters


def _profile(path: Path, name: str | None) -> list[Path]:
    from workbench.errors import SettingError

    if name is None:
        return []
    known = {file.parent.name: file for file in path.parent.glob(f"params/*/{path.stem}.yaml")}
    if name not in known:
        raise SettingError(
            f"--profile must be a profile of {path.stem} ({', '.join(sorted(known)) or 'none'}), "
            f"got {name!r}"
        )
    return [known[name]]


def display_path(path: Path) -> str:
    """Return the path relative to the working directory, if it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
