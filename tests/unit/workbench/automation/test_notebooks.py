"""Parameters of notebooks, against Python's own execution and files that notebooks write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from support.paths import NOTEBOOKS

from workbench.__main__ import main
from workbench.automation.notebooks import (
    check_parameters,
    find_notebook,
    parameters_in,
    parameters_of,
    read_value,
)
from workbench.errors import SettingError

PARAMETERS = """
rate = 4.0  # a second
requests: int = 8
shift = -1.5
filter = "a=b=c"  # papermill's own inspection cannot read this line
lengths = [
    16,
    32,
]
slo = None
key = ""
steady = True
run_root = "runs"
run_id = ""
"""
BODY = """
import json
from pathlib import Path
from workbench.automation.notebooks import parameters_in
from workbench.runs.run import Run

with open("started.txt", "a") as file:
    file.write(f"{run_id}\\n")
seen = parameters_in("probe", globals())
run = Run.create(run_root, {"notebook": str(Path("probe.ipynb").resolve()), "parameters": seen})
"""


def notebook(folder: Path, parameters: str, body: str, name: str = "probe") -> Path:
    """A notebook of two code cells."""
    make = nbformat.v4.new_code_cell
    cells = [make(parameters, metadata={"tags": ["parameters"]}), make(body)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """A notebook that writes the parameters it received to `runs/RUN_ID/seen.json`."""
    body = BODY.replace("seen})", "seen}, run_id=run_id)")
    return notebook(
        tmp_path, PARAMETERS, f"{body}(run.path / 'seen.json').write_text(json.dumps(seen))"
    )


def test_parameters_have_the_values_that_python_assigns(probe: Path) -> None:
    names: dict[str, Any] = {}
    exec(PARAMETERS, names)
    parameters = parameters_of(probe)
    assert parameters == {name: names[name] for name in parameters}
    assert set(parameters) == set(names) - {"__builtins__", "__annotations__"}


@pytest.mark.parametrize("source", ["rate = 2 * 4", "a, b = 1, 2", "import os", "rate ="])
def test_cell_with_more_than_literals_is_rejected(tmp_path: Path, source: str) -> None:
    with pytest.raises(SettingError, match=r"cell `parameters`, line 1"):
        parameters_of(notebook(tmp_path, source, ""))


@pytest.mark.parametrize(
    "given",
    [{"rate": 4}, {"slo": "fast"}, {"slo": None}, {"slo": 2.5}, {"key": None}, {"lengths": []}],
)
def test_values_of_the_default_type_are_accepted(probe: Path, given: dict[str, Any]) -> None:
    check_parameters(probe, given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"requets": 5}, "requets is not a parameter of notebook probe: did you mean requests?"),
        (
            {"requests": True},
            "requests must be a whole number in notebook probe, like its default 8, got True",
        ),
        (
            {"requests": 2.0},
            "requests must be a whole number in notebook probe, like its default 8, got 2.0",
        ),
        (
            {"steady": 1},
            "steady must be true or false in notebook probe, like its default True, got 1",
        ),
        ({"rate": "4"}, "rate must be a number in notebook probe, like its default 4.0, got '4'"),
        ({"rate": None}, "rate must be a number in notebook probe, like its default 4.0, got None"),
        ({"key": 7}, "key must be text in notebook probe, like its default '', got 7"),
        (
            {"filter": None},
            "filter must be text in notebook probe, like its default 'a=b=c', got None",
        ),
        (
            {"lengths": 16},
            "lengths must be a list in notebook probe, like its default [16, 32], got 16",
        ),
    ],
)
def test_values_of_another_type_are_rejected(
    probe: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError) as caught:
        check_parameters(probe, given)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("5", 1, 5),
        ("5", 1.0, 5.0),
        ("1e-3", None, 0.001),
        ("False", True, False),
        ("null", None, None),
        ("[1, 2.5, a]", [], [1, 2.5, "a"]),
        ("01", "x", "01"),
        ("None", "", None),
        ("2026-01-31", None, "2026-01-31"),
    ],
)
def test_values_from_the_command_line(text: str, default: Any, value: Any) -> None:
    actual = read_value(text, default)
    assert (actual, type(actual)) == (value, type(value))


@pytest.mark.parametrize("folder", [NOTEBOOKS, NOTEBOOKS.parent, Path("/")])
def test_notebook_finds_its_own_parameters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    defaults = parameters_of(find_notebook("00"))
    present = {**defaults, "requests": 3, "other": 1}
    assert parameters_in("00_first_endpoint", present) == {**defaults, "requests": 3}
    del present["requests"]
    with pytest.raises(SettingError, match="requests of 00_first_endpoint has no value"):
        parameters_in("00_first_endpoint", present)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "-p", "requets", "5"],
        ["sweep", "--grid", "requets=5,6"],
        ["sweep", "--grid", "rate=1,2", "-p", "requets", "5"],
    ],
)
def test_misspelt_parameter_starts_nothing(
    probe: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(probe.parent.iterdir())
    command, *options = arguments
    location = ["--runs", str(probe.parent / "runs")]
    assert main([command, str(probe), *options, *location]) == 2
    output = capsys.readouterr()
    assert (
        output.err.strip() == "requets is not a parameter of notebook probe: did you mean requests?"
    )
    assert sorted(probe.parent.iterdir()) == before


def test_run_is_repeated_with_the_same_parameters(
    probe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = probe.parent / "runs"
    file = probe.parent / "file.yaml"
    file.write_text("rate: 0.1\nrequests: 3\nslo: 2026-01-31\n")
    given = ["-f", str(file), "-p", "requests", "5", "-p", "filter", 'é "\\n=01', "-p", "lengths"]
    location = ["--runs", str(runs)]
    assert main(["run", str(probe), *given, "[1, 2]", "--run-id", "first", *location]) == 0
    assert main(["repeat", str(runs / "first"), *location]) == 0
    seen = {path.parent.name: json.loads(path.read_text()) for path in runs.glob("*/seen.json")}
    first = seen.pop("first")
    (second,) = seen.values()
    expected = {"rate": 0.1, "requests": 5, "filter": 'é "\\n=01', "lengths": [1, 2]}
    assert first == parameters_of(probe) | expected | {
        "slo": "2026-01-31",
        "run_root": str(runs),
        "run_id": "first",
    }
    assert second.pop("run_id") != first.pop("run_id")
    assert json.dumps(second) == json.dumps(first)
    assert len(list(runs.glob("*/probe.ipynb"))) == 2
    assert not list(runs.glob("*.ipynb"))

    capsys.readouterr()
    notebook(probe.parent, PARAMETERS.replace("shift", "moved"), "")
    assert main(["repeat", str(runs / "first"), *location]) == 2
    assert capsys.readouterr().err.startswith("shift is not a parameter of notebook probe")


def test_run_without_recorded_parameters_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment.json").write_text('{"experiment": {"notebook": "00_first_endpoint"}}')
    assert main(["repeat", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert "has no `notebook` and `parameters`" in output.err
    assert output.err.strip().count("\n") == 0


def test_notebook_that_fails_before_its_run_leaves_no_file_in_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    path = notebook(tmp_path, PARAMETERS, "raise ValueError('early')")
    assert main(["run", str(path), "--run-id", "one", "--runs", str(runs)]) == 1
    error = capsys.readouterr().err
    saved = Path(error.rpartition("partial notebook: ")[2].rstrip(")\n"))
    assert "early" in saved.read_text()
    assert not error.startswith("\n")
    assert not runs.exists() or not list(runs.iterdir())
    shutil.rmtree(saved.parent)
