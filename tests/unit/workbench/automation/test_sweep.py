"""Sweeps of a small notebook that adds a line to a file at every start."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from workbench.__main__ import main
from workbench.automation.execution import NotebookError
from workbench.automation.grid import Cell, make_sweep
from workbench.automation.sweep import open_sweep, run_sweep
from workbench.errors import SettingError

PARAMETERS = """
rate = 1.0
kind = "poisson"
duration = 2
run_root = "runs"
run_id = ""
"""
BODY = """
import time
from pathlib import Path
from workbench.runs.run import Run

with open("started.txt", "a") as file:
    file.write(f"{rate:g}\\n")
run = Run.create(run_root, {}, run_id=run_id)
if rate == 2 and Path("broken").exists():
    raise ValueError("too\\nfast")
time.sleep(600 if rate == 2 and Path("hang").exists() else 0)
health = {"client_limited": rate > 2}
run.finish({"completed": 10, "median_ttft_ms": 12.5 * rate, "client_health": health})
"""


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """A notebook that fails or hangs at rate 2 if a certain file exists."""
    make = nbformat.v4.new_code_cell
    cells = [make(PARAMETERS, metadata={"tags": ["parameters"]}), make(BODY)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path = tmp_path / "probe.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def started(probe: Path) -> list[str]:
    return (probe.parent / "started.txt").read_text().split()


def results(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_only_failed_cells_run_again(probe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = probe.parent / "out"
    (probe.parent / "broken").touch()
    command = ["sweep", str(probe), "--grid", "rate=2,1", "-p", "duration", "3", "--runs", str(out)]
    assert main(command) == 1
    output = capsys.readouterr().out
    (partial,) = out.glob("rate-2.0_*/probe.ipynb")
    failed = f"notebook probe, In [3]: ValueError: too fast (partial notebook: {partial})"
    assert f"failed: {failed}\n" in output
    rows = results(out)
    assert [(row["rate"], row["parameter_duration"], row["status"]) for row in rows] == [
        ("2.0", "3", "failed"),
        ("1.0", "3", "done"),
    ]
    assert rows[0]["error"] == failed
    assert (rows[0]["completed"], rows[0]["median_ttft_ms"]) == ("", "")
    assert (rows[1]["completed"], rows[1]["median_ttft_ms"]) == ("10", "12.5")
    assert rows[1]["client_limited"] == "False"

    (probe.parent / "broken").unlink()
    assert main(command) == 0
    assert started(probe) == ["2", "1", "2"]
    output = capsys.readouterr().out
    assert "skipped, already done: rate=1.0\n[1/2] rate=2.0\n" in output
    assert [(row["status"], row["median_ttft_ms"]) for row in results(out)] == [
        ("done", "25.0"),
        ("done", "12.5"),
    ]
    assert [p.name for p in (out / "cut_off").iterdir()] == [partial.parent.name]


@pytest.mark.slow
def test_cells_share_a_kernel_but_no_variables(probe: Path) -> None:
    notebook = nbformat.read(probe, 4)
    notebook.cells[1].source += """
import os
assert "left" not in globals()
left = os.getpid()
with open("kernels.txt", "a") as file:
    file.write(f"{left} {os.environ['WORKBENCH_KEEP_SERVICES']}\\n")
"""
    nbformat.write(notebook, probe)
    (probe.parent / "broken").touch()
    out = probe.parent / "out"
    assert main(["sweep", str(probe), "--grid", "rate=1,3,2,4", "--runs", str(out)]) == 1
    one, two, three = (probe.parent / "kernels.txt").read_text().splitlines()
    assert one == two != three  # the kernel of the failed cell is not used again
    assert one.endswith(" 1")
    assert not any(Path(f"/proc/{kernel.split()[0]}").exists() for kernel in (one, three))


@pytest.mark.parametrize("failures", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_kernel_that_ends_while_it_starts_is_started_again(
    probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    code = f"""
import os, sys
with open({str(tmp_path / "starts.txt")!r}, "a+") as file:
    file.seek(0)
    starts = len(file.read())
    file.write(".")
if starts < {failures}:
    sys.exit(1)
os.dup2(os.open({str(tmp_path / "errors.txt")!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", *sys.argv[1:]])
"""
    argv = [sys.executable, "-c", code, "-f", "{connection_file}"]
    kernel = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    out = probe.parent / "out"
    status = main(["sweep", str(probe), "--grid", "rate=1", "--runs", str(out)])
    assert status == (0 if failures == 1 else 1)
    errors = tmp_path / "errors.txt"
    # Another process may have taken a kernel's port, which is a further failure.
    taken = errors.read_text().count("ZMQError: Address already in use") if errors.exists() else 0
    assert len((tmp_path / "starts.txt").read_text()) == min(failures + taken + 1, 3)


@pytest.mark.slow
def test_killed_sweep_continues(probe: Path) -> None:
    out = probe.parent / "out"
    (probe.parent / "hang").touch()
    command = ["sweep", str(probe), "--grid", "rate=1,2,3", "--runs", str(out)]
    child = subprocess.Popen([sys.executable, "-m", "workbench", *command])
    deadline = time.monotonic() + 200  # A kernel may take a minute to start.
    while not ((probe.parent / "started.txt").exists() and started(probe) == ["1", "2"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    (probe.parent / "hang").unlink()
    assert main(command) == 0
    assert started(probe) == ["1", "2", "2", "3"]
    assert [row["status"] for row in results(out)] == ["done"] * 3


def test_sweep_may_only_gain_cells(probe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def continue_sweep(*grid: str, repeats: int = 1, **given: object) -> None:
        with open_sweep(out, make_sweep(probe, grid, given, repeats=repeats)):
            pass

    continue_sweep("rate=1,2")
    continue_sweep("rate=2,3,1", repeats=2)
    kept = json.loads((out / "sweep.json").read_text())
    with pytest.raises(
        SettingError, match=r"lacks 3 cells of the sweep in .*such as rate=2.0, repeat 2"
    ):
        continue_sweep("rate=2,3,1")
    with pytest.raises(SettingError, match=r"^kind is 'gamma', but 'poisson' in the sweep in"):
        continue_sweep("rate=2,3,1", repeats=2, kind="gamma")
    assert json.loads((out / "sweep.json").read_text()) == kept
    assert kept["grid"] == {"rate": [2.0, 3.0, 1.0]}
    assert kept["fixed"] == {"kind": "poisson", "duration": 2}


@pytest.mark.parametrize(
    ("grid", "given", "message"),
    [
        (["rate"], {}, "got 'rate'"),
        (["rate=1", "rate=2"], {}, "name each parameter once"),
        (["rate=1,1.0"], {}, "a value of rate twice"),
        (
            ["rate=1,fast"],
            {},
            "rate must be a number in notebook probe, like its default 1.0, got 'fast'",
        ),
        (["rate=1"], {"rate": 2.0}, "rate must be given once, got it in --grid and as a parameter"),
        (["run_id=a,b"], {}, "run_id is set by the sweep"),
    ],
)
def test_invalid_grid_is_rejected(
    probe: Path, grid: list[str], given: dict[str, float], message: str
) -> None:
    with pytest.raises(SettingError) as caught:
        make_sweep(probe, grid, given)
    assert message in str(caught.value)


def test_time_left_is_estimated_from_successful_cells(probe: Path, tmp_path: Path) -> None:
    sweep = make_sweep(probe, ["rate=1,2,3", "kind=poisson,gamma"], {})
    now, lines = [0.0], list[str]()

    def run(cell: Cell) -> None:
        now[0] += 10 * cell.parameters["rate"]
        if cell.parameters["kind"] == "gamma":
            raise NotebookError("no gamma")
        (tmp_path / cell.run_id).mkdir()
        (tmp_path / cell.run_id / "summary.json").write_text("{}")

    assert not run_sweep(sweep, tmp_path, run=run, clock=lambda: now[0], notify=lines.append)
    progress = [line for line in lines if line.startswith("[")]
    assert progress == [
        "[1/6] kind=poisson rate=1.0",
        "[2/6] kind=poisson rate=2.0 (about 50 s left)",
        "[3/6] kind=poisson rate=3.0 (about 60 s left)",
        "[4/6] kind=gamma rate=1.0 (about 60 s left)",
        "[5/6] kind=gamma rate=2.0 (about 40 s left)",
        "[6/6] kind=gamma rate=3.0 (about 20 s left)",
    ]
    assert lines.count("failed: no gamma") == 3
