"""Look for known vulnerabilities in what the lock files pin; `make audit` runs it.

pip-audit, in an environment of its own (build/audit), asks the vulnerability service of the
package index. Without such a service pip-audit reports success, so this script first asks about one
package.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tool_environment import install
from torch_index import PipError, read_pins

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
LOCK = REQUIREMENTS / "audit.txt"
ENVIRONMENT = ROOT / "build" / "audit"
NO_SERVICE = (
    "the vulnerability service cannot be used: {reason}. Nothing was audited. It needs an index "
    "with the JSON API of PyPI (/pypi/NAME/VERSION/json), or the OSV database. Run `make audit` "
    "where one of them can be reached; AUDIT='--vulnerability-service osv' selects the second"
)


class AuditError(Exception):
    """The audit failed or found something; the message says what."""


def main() -> None:
    """Audit the pins of both profiles."""
    install(LOCK, ENVIRONMENT)
    options = sys.argv[1:]
    pins = sorted({pin for name in ("cpu", "gpu") for pin in read_lock(name)})
    probe = audit(pins[:1], options)
    if skipped(probe):
        raise AuditError(NO_SERVICE.format(reason=skipped(probe)[0]))
    report = audit(pins, options)
    faults = [*vulnerabilities(report), *skipped(report)]
    if faults:
        raise AuditError("\n".join(faults))
    print(f"audit: {len(report)} packages, no known vulnerability")


def read_lock(name: str) -> list[str]:
    """Return the pins of a lock as the service knows them: without markers and torch's +cpu."""
    pins = read_pins(REQUIREMENTS / f"{name}.txt")
    return [pin.partition(" ; ")[0].replace("+cpu", "") for pin in pins]


def audit(pins: list[str], options: list[str]) -> list[dict[str, Any]]:
    """Return pip-audit's report on each package.

    Raises:
        AuditError: pip-audit has made no report.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins) + "\n")
        file.flush()
        command = [str(ENVIRONMENT / "bin" / "pip-audit"), "--format", "json", "--no-deps"]
        command += ["--disable-pip", "--progress-spinner", "off", "-r", file.name, *options]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(ended.stdout)["dependencies"]
    except ValueError:
        lines = ended.stderr.strip().splitlines() or ["pip-audit printed nothing"]
        raise AuditError(NO_SERVICE.format(reason=lines[-1])) from None
    return packages


def skipped(report: list[dict[str, Any]]) -> list[str]:
    """Return why packages were not audited."""
    return [package["skip_reason"] for package in report if "skip_reason" in package]


def vulnerabilities(report: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the known vulnerabilities with the versions that fix them."""
    for package in report:
        for known in package.get("vulns", ()):
            fixed = ", ".join(known["fix_versions"]) or "no version"
            yield f"{package['name']} {package['version']}: {known['id']}, fixed in {fixed}"


if __name__ == "__main__":
    try:
        main()
    except (AuditError, PipError) as error:
        sys.exit(f"audit: {error}")
