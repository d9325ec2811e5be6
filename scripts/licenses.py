"""Write docs/licenses.md, and fail if a license is unknown or not permitted; `make audit` runs it.

The licenses come from the metadata of the installed packages. requirements/licenses.toml has the
permitted licenses, and the packages that are permitted for another reason.
"""

from __future__ import annotations

import re
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
POLICY_FILE = ROOT / "requirements" / "licenses.toml"
PAGE = ROOT / "docs" / "licenses.md"
OWN = "llm-serving-workbench"
# Classifiers that name no license.
VAGUE = ("OSI Approved", "DFSG approved")
HEADER = """\
# Licenses of the dependencies

The packages of the CPU environment (`requirements/cpu.txt`) and the licenses that their metadata
declares, as SPDX expressions. `make audit` writes this page. It fails if a license is unknown or
not permitted by `requirements/licenses.toml`, which also has the reason for each package that is
marked with an asterisk. On a GPU, vLLM and torch also need NVIDIA's CUDA packages, which are
proprietary; NVIDIA's terms permit redistribution.

| package | license |
| --- | --- |
"""


class Policy:
    """The permitted licenses, by SPDX expression and by package."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.permitted: set[str] = set(content["permitted"])
        self.names: dict[str, str] = content["names"]
        self.packages: dict[str, dict[str, str]] = content["packages"]

    def license(self, package: Distribution) -> str | None:
        """Return the license of a package as an SPDX expression, or None if it is unknown."""
        listed = self.packages.get(canonicalize_name(package.name))
        return listed["license"] if listed else self.declared(package)

    def declared(self, package: Distribution) -> str | None:
        """Return the license that a package declares: its expression, classifiers or free text."""
        # A package's metadata is untyped, because a field can occur several times.
        fields: Any = package.metadata
        if fields["License-Expression"]:
            return self.parse(fields["License-Expression"])
        classifiers = [c.split(" :: ") for c in fields.get_all("Classifier") or ()]
        names = [c[-1] for c in classifiers if c[0] == "License" and c[-1] not in VAGUE]
        text = (fields["License"] or "").strip()
        if not names and text:
            names = [text.splitlines()[0]]
        licenses = [self.parse(name) for name in names]
        return None if not licenses or None in licenses else " AND ".join(map(str, licenses))

    def parse(self, name: str) -> str | None:
        """Return a name as an SPDX expression, or None if it is neither known nor an expression."""
        try:
            return canonicalize_license_expression(self.names.get(name, name))
        except InvalidLicenseExpression:
            return None

    def permits(self, expression: str) -> bool:
        """Return whether an expression without parentheses can be satisfied."""
        if set("()") & set(expression):
            return False
        return any(
            all(license in self.permitted for license in re.split(" AND ", choice))
            for choice in re.split(" OR ", expression)
        )

    def fault(self, package: Distribution) -> str | None:
        """Return why a package does not pass, or None."""
        name = canonicalize_name(package.name)
        expression = self.license(package)
        if expression is None:
            return f"{name}: its metadata declares no license that is known"
        if name in self.packages or self.permits(expression):
            return None
        return f"{name}: {expression} is not permitted"


def installed() -> list[Distribution]:
    """Return the installed packages by name, without our own.

    ``sys.path`` may also have packages that others bring along, such as setuptools.
    """
    folders = list({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    packages = {canonicalize_name(p.name): p for p in distributions(path=folders)}
    return [packages[name] for name in sorted(packages) if name != OWN]


def rows(packages: list[Distribution], policy: Policy) -> Iterator[str]:
    """Yield the rows of the page."""
    for package in packages:
        name = canonicalize_name(package.name)
        mark = " *" if name in policy.packages else ""
        yield f"| {name} {package.version}{mark} | {policy.license(package) or 'unknown'} |\n"


def main() -> None:
    """Write the page, then end with an error if a package does not pass."""
    policy = Policy(tomllib.loads(POLICY_FILE.read_text()))
    packages = installed()
    PAGE.write_text(HEADER + "".join(rows(packages, policy)))
    faults = [fault for package in packages if (fault := policy.fault(package))]
    if faults:
        sys.exit(
            "licenses: "
            + "\n".join(faults)
            + "\nReplace these packages, or read their licenses and list them with a reason in "
            "requirements/licenses.toml"
        )
    print(f"licenses: {len(packages)} packages, all permitted; see docs/{PAGE.name}")


if __name__ == "__main__":
    main()
