"""A build backend (PEP 517) that downloads torch's CPU wheel instead of building one.

A requirements file cannot restrict an index to one package. This backend can: pip calls it for
torch alone, and it follows the rule of scripts/torch_index.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT / "scripts"))

from torch_index import PipError, run_pip, run_pip_for_torch  # noqa: E402


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, str] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Download the wheel of the torch that requirements/cpu.txt pins.

    Returns:
        The name of the file in `wheel_directory`.
    """
    # pip isolates a build by this variable, which would hide pip itself from the command below.
    os.environ.pop("PYTHONPATH", None)
    command = ["wheel", "--no-deps", "--wheel-dir", wheel_directory]
    try:
        run_pip_for_torch(
            ROOT / "requirements" / "cpu.txt", lambda arguments: run_pip([*command, *arguments])
        )
    except PipError as error:
        sys.exit(str(error))
    (wheel,) = Path(wheel_directory).glob("torch-*.whl")
    return wheel.name
