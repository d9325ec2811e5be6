"""A build backend (PEP 517) that installs a lock file into the Python that builds it.

conda can only run `pip install -r`. That command resolves dependencies, gives one index to all
packages, and cannot check hashes where a requirement is a folder, such as our own packages. This
backend runs pip as `make setup` does, with neither of these limits. The wheel that it builds holds
nothing but its name.
"""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

from install import SetupError, find_accelerator  # noqa: E402
from torch_index import (  # noqa: E402
    PipError,
    hashed,
    read_entries,
    run_pip,
    run_pip_for_torch,
)

NAME = "llm_serving_workbench_environment-1"
METADATA = f"Metadata-Version: 2.1\nName: {NAME.split('-')[0]}\nVersion: {NAME.split('-')[1]}\n"
WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: dict[str, str] | None = None
) -> str:
    """Write the metadata, so that pip does not build the package where it only resolves."""
    folder = Path(metadata_directory) / f"{NAME}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(METADATA)
    (folder / "WHEEL").write_text(WHEEL)
    return folder.name


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, str] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Install the environment, then write an empty wheel.

    Returns:
        The name of the file in `wheel_directory`.
    """
    # pip isolates a build by this variable, which would hide pip itself from the commands below.
    os.environ.pop("PYTHONPATH", None)
    try:
        install(ROOT / "requirements" / f"{find_accelerator()}.txt")
    except (PipError, SetupError) as error:
        sys.exit(str(error))
    return write_wheel(Path(wheel_directory) / f"{NAME}-py3-none-any.whl")


def install(lock: Path) -> None:
    """Install a lock and our own packages, but not pip, which runs this and comes from conda."""
    command = ["install", "--no-deps"]
    run_pip_for_torch(lock, lambda options: run_pip([*command, *options]))
    entries = [entry for entry in read_entries(lock) if not entry.startswith("pip==")]
    with hashed(entries) as options:
        run_pip([*command, *options])
    run_pip([*command, "--no-build-isolation", "--editable", str(ROOT)])


def write_wheel(path: Path) -> str:
    """Write a wheel that holds its metadata only, and return its name."""
    files = {"METADATA": METADATA, "WHEEL": WHEEL, "RECORD": ""}
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(f"{NAME}.dist-info/{name}", text)
    return path.name
