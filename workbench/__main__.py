"""``python -m workbench``: run notebooks as papermill does, once, over a grid, or again."""

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
IMAGE = f"llm-serving-workbench:{version('llm-serving-workbench')}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. The status is 1 if a notebook failed, 2 if it was refused before a start."""
    from serving.errors import WorkbenchError
    from workbench.errors import SettingError

    arguments = parser().parse_args(argv)
    try:
        return int(arguments.call(arguments))
    except WorkbenchError as error:
        print(f"\n{' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, SettingError) else 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(prog="python -m workbench", description=__doc__)
    commands = whole.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help=f"run notebook {DEMO} and say where its pages lie")
    demo.add_argument("--profile", choices=("cpu", "gpu"), default=None, help="of notebooks/params")
    run = commands.add_parser("run", help="run a notebook once")
    _add_parameters(run)
    run.add_argument("--run-id", help="name of the run's folder (made from the time)")
    run.add_argument("--runs", type=Path, metavar="DIR", help="where its folder goes (runs)")
    sweep = commands.add_parser("sweep", help="run a notebook over a grid; again: go on with it")
    _add_parameters(sweep)
    grid = "values of a parameter; several: their product"
    sweep.add_argument("--grid", action="append", required=True, metavar="NAME=V1,V2", help=grid)
    sweep.add_argument("--repeats", type=int, default=1, metavar="N", help="runs of each cell (1)")
    sweep.add_argument("--out", type=Path, metavar="DIR", help="its folder (runs/sweep-NOTEBOOK)")
    repeat = commands.add_parser("repeat", help="run a run's notebook with its parameters again")
    repeat.add_argument("run", type=Path, metavar="RUN_FOLDER")
    repeat.add_argument("--runs", type=Path, metavar="DIR", help="where its folder goes (runs)")
    keep = commands.add_parser("keep", help="take finished runs' claims into small JSON files")
    keep.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER")
    keep.add_argument("--to", type=Path, metavar="DIR", help="benchmarks/results/claims")
    pages = "write docs/claims.md and the README's summary of it from kept runs"
    claims = commands.add_parser("claims", help=pages)
    claims.add_argument("runs", nargs="*", type=Path, metavar="RUN_FOLDER", help="keep these first")
    manifest = commands.add_parser("manifest", help="write a specification as a cluster's file")
    manifest.add_argument("spec", type=Path, metavar="SPEC.yaml")
    manifest.add_argument("--kind", choices=("serve", "kuberay"), required=True)
    manifest.add_argument("--image", default=IMAGE, help=f"of all pods ({IMAGE})")
    hashes = "SHA-256 of a key; else that of LLM_WORKBENCH_API_KEY, else a Kubernetes secret"
    manifest.add_argument("--key-hash", action="append", metavar="SHA256", help=hashes)
    manifest.add_argument("--out", type=Path, metavar="FILE", help="instead of standard output")
    for command, call in (
        (demo, run_demo),
        (run, run_once),
        (sweep, run_grid),
        (repeat, run_again),
        (keep, keep_runs),
        (claims, write_claims),
        (manifest, write_manifest),
    ):
        command.set_defaults(call=call)
    return whole


def _add_parameters(command: argparse.ArgumentParser) -> None:
    command.add_argument("notebook", help="a path, a name in notebooks/, or its beginning: 01")
    command.add_argument("--profile", metavar="P", help="of params/ beside the notebook")
    command.add_argument(
        *("-f", "--file"), action="append", default=[], type=Path, help="YAML file of parameters"
    )
    command.add_argument(
        *("-p", "--parameter"), action="append", default=[], nargs=2, metavar=("NAME", "VALUE")
    )


def has_gpu() -> bool:
    """Whether an NVIDIA GPU answers."""
    command = shutil.which("nvidia-smi")
    return (
        command is not None and subprocess.run([command, "-L"], capture_output=True).returncode == 0
    )


def run_demo(arguments: argparse.Namespace) -> int:
    """Run the demo's notebook with a profile's parameters into a run folder."""
    profile = arguments.profile or ("gpu" if has_gpu() else "cpu")
    command = ["run", DEMO, "--profile", profile]
    return run_once(parser().parse_args(command))


def run_once(arguments: argparse.Namespace) -> int:
    """Run one notebook into a run folder; a run's place may be a parameter too."""
    from workbench.automation.notebooks import find_notebook

    path = find_notebook(arguments.notebook)
    given = given_parameters(path, arguments)
    root, name = given.pop("run_root", None), given.pop("run_id", None)
    runs = arguments.runs or (path.parent / root if root else None)
    return _one_run(path, given, runs, arguments.run_id or name, arguments.profile)


def run_again(arguments: argparse.Namespace) -> int:
    """Run the notebook of a run again, with the parameters in its experiment.json."""
    from workbench.automation.notebooks import parameters_of, recorded

    path, given = recorded(arguments.run)
    own = [name for name in parameters_of(path) if name not in (*given, "run_root", "run_id")]
    if own:
        print(f"not in the run's record, so the notebook's own value stands: {', '.join(own)}")
    return _one_run(path, given, arguments.runs, None, None)


def _one_run(
    path: Path, given: dict[str, Any], runs: Path | None, run_id: str | None, profile: str | None
) -> int:
    from workbench.automation.notebooks import run_notebook
    from workbench.session import default_run_root

    name = run_id or f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    of = f", profile {profile}" if profile else ""
    print(f"notebook {path.stem}{of}, run {name}\n", flush=True)
    executed = run_notebook(path, given, runs=(runs or default_run_root()).resolve(), run_id=name)
    print(f"\nnotebook    {shown(executed)}")
    report = executed.parent / "report.html"
    if report.exists():
        print(f"report      {shown(report)}")
    return 0


def run_grid(arguments: argparse.Namespace) -> int:
    """Run a sweep, or go on with it, and print its table."""
    from workbench.automation.notebooks import find_notebook, run_notebook
    from workbench.automation.sweep import Cell, make_sweep, opened, results_table, run_sweep
    from workbench.session import default_run_root

    path = find_notebook(arguments.notebook)
    given = given_parameters(path, arguments)
    sweep = make_sweep(path, arguments.grid, given, repeats=arguments.repeats)
    out = (arguments.out or default_run_root() / f"sweep-{path.stem}").resolve()

    def run(cell: Cell) -> None:
        run_notebook(path, cell.parameters, runs=out, run_id=cell.run_id)

    def say(line: str) -> None:
        print(line, flush=True)

    with opened(out, sweep):
        done = run_sweep(sweep, out, run=run, clock=time.monotonic, say=say)
    print(f"\n{results_table(out, sweep)}\n\nresults     {shown(out / 'results.csv')}")
    return 0 if done else 1


def keep_runs(arguments: argparse.Namespace) -> int:
    """Keep what finished runs say of claims."""
    from workbench.claims.table import KEPT, archive

    for folder in arguments.runs:
        print(f"kept        {shown(archive(folder, arguments.to or KEPT))}")
    return 0


def write_claims(arguments: argparse.Namespace) -> int:
    """Keep the given runs, then write docs/claims.md and the README's summary."""
    from workbench.claims.table import CLAIMS, README, archive, write_table

    for folder in arguments.runs:
        print(f"kept        {shown(archive(folder))}")
    print(f"{shown(CLAIMS)}, {shown(README)}: {write_table()} claims")
    return 0


def write_manifest(arguments: argparse.Namespace) -> int:
    """Write a Serve config or a RayService from the specification in a file."""
    from serving.deploy.manifest import read_spec, write
    from serving.spec.tenants import KEY_VARIABLE, key_hash

    spec, callers = read_spec(arguments.spec)
    key = os.environ.get(KEY_VARIABLE)
    given = arguments.key_hash or ([key_hash(key)] if key else [])
    callers = callers or ({"key_hashes": given} if given else {})
    text = write(arguments.kind, spec, arguments.image, callers)
    if arguments.out is None:
        print(text, end="")
    else:
        arguments.out.write_text(text, encoding="utf-8")
    return 0


def given_parameters(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The profile's, then those of the files, then the single ones; a later value wins."""
    from workbench.automation.notebooks import (
        check_parameters,
        parameters_of,
        read_parameters,
        read_value,
    )

    files = [*_profile(path, arguments.profile), *arguments.file]
    given: dict[str, Any] = {}
    for file in files:
        given |= read_parameters(file)
    defaults = parameters_of(path)
    given |= {name: read_value(text, defaults.get(name)) for name, text in arguments.parameter}
    check_parameters(path, given)
    return given


def _profile(path: Path, name: str | None) -> list[Path]:
    from workbench.errors import SettingError

    if name is None:
        return []
    known = {file.parent.name: file for file in path.parent.glob(f"params/*/{path.stem}.yaml")}
    if name not in known:
        raise SettingError(
            f"--profile is {name!r}, but {path.stem} has {', '.join(sorted(known)) or 'none'}"
        )
    return [known[name]]


def shown(path: Path) -> str:
    """A path as short as it can be told from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
