"""``python -m workbench demo``: run a notebook as papermill does, its output shown as it comes."""

from __future__ import annotations

import argparse
import logging
import secrets
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO = "00_first_endpoint"


def main() -> int:
    """Parse the command line; the exit status is 0 if the notebook ran through."""
    parser = argparse.ArgumentParser(prog="python -m workbench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help=f"run notebook {DEMO} and say where its pages lie")
    demo.add_argument("--profile", choices=("cpu", "gpu"), default=None, help="of notebooks/params")
    arguments = parser.parse_args()
    return run_demo(arguments.profile or ("gpu" if has_gpu() else "cpu"))


def has_gpu() -> bool:
    """Whether an NVIDIA GPU answers."""
    command = shutil.which("nvidia-smi")
    return (
        command is not None and subprocess.run([command, "-L"], capture_output=True).returncode == 0
    )


def run_demo(profile: str) -> int:
    """Run the demo's notebook with a profile's parameters into a run folder."""
    from workbench.errors import WorkbenchError

    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    print(f"notebook {DEMO}, profile {profile}, run {run_id}\n", flush=True)
    try:
        executed = execute(DEMO, profile, run_id)
    except WorkbenchError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(f"\nnotebook    {shown(executed)}\nreport      {shown(executed.parent / 'report.html')}")
    return 0


def execute(name: str, profile: str, run_id: str) -> Path:
    """Run ``notebooks/NAME.ipynb``; the executed notebook ends in the run's own folder."""
    import papermill
    import yaml

    notebooks, runs = ROOT / "notebooks", ROOT / "runs"
    runs.mkdir(exist_ok=True)
    parameters = yaml.safe_load((notebooks / "params" / profile / f"{name}.yaml").read_text())
    output = runs / f"{run_id}.ipynb"
    logging.getLogger("papermill").setLevel(logging.ERROR)
    papermill.execute_notebook(
        notebooks / f"{name}.ipynb",
        output,
        parameters | {"run_root": str(runs), "run_id": run_id},
        cwd=notebooks,
        progress_bar=False,
        log_output=False,
        stdout_file=sys.stdout,
        stderr_file=sys.stderr,
        # The kernel is this process's own: its note on transport encryption is noise.
        extra_arguments=["--log-level=ERROR"],
    )
    return output.replace(runs / run_id / f"{name}.ipynb")


def shown(path: Path) -> str:
    """A path as short as it can be told from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
