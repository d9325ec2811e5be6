"""Run the benchmarks and keep their results; `make bench` runs it, `ONLY=name` selects one.

Each of benchmarks/NAME.py prints one JSON object as its last line; that line is appended to
benchmarks/results/NAME.jsonl. A goal that was missed is a result; a benchmark that fails is not.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
KEYS = {"name", "figures", "goals", "met", "machine", "versions", "date"}


def chosen(names: list[str]) -> list[Path]:
    """Return the named benchmarks, or all; exit if a name is unknown."""
    known = {path.stem: path for path in sorted(BENCHMARKS.glob("[!_]*.py"))}
    unknown = set(names) - set(known)
    if unknown:
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    return [known[name] for name in names or known]


def run(path: Path) -> str | None:
    """Run one benchmark, and return the last line of its output, or None if it failed."""
    command = [sys.executable, "-u", str(path)]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line.strip() or last
    return None if process.returncode else last


def is_result(line: str) -> bool:
    """Return whether a line is a result: a JSON object with every key of the contract."""
    try:
        result = json.loads(line)
    except ValueError:
        return False
    return isinstance(result, dict) and result.keys() >= KEYS


def main() -> int:
    """Run the benchmarks in turn; the exit status is 1 if one gave no result."""
    failed = []
    for path in chosen(sys.argv[1:]):
        print(f"== {path.stem}", flush=True)
        line = run(path)
        if line is None or not is_result(line):
            failed.append(path.stem)
            continue
        results = BENCHMARKS / "results" / f"{path.stem}.jsonl"
        results.parent.mkdir(exist_ok=True)
        with results.open("a") as file:
            file.write(line + "\n")
    if failed:
        print(f"no result from: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
