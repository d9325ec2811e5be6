"""Build deploy/Dockerfile without a container engine, and use the image; `make image-test` runs it.

Buildah builds the image with chroot isolation on a base that debootstrap makes, from a folder of
wheels, so that this needs root and Debian's packages but neither Docker nor its registry. Then the
commands below run in the image as its own user, with a network of their own:

1. `serve run` with a manifest of the kind "serve".
2. The commands of the pods of a manifest of the kind "kuberay": `ray start` for the head and a
   worker with the manifest's parameters and variables, the readiness probe, and the configuration
   of Serve through the dashboard.

Each time, the service must answer with the key, and refuse without it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "image"
ROOTFS, WHEELHOUSE = FOLDER / "rootfs", FOLDER / "wheelhouse"
SUITE, SUITE_PYTHON = "bookworm", (3, 11)
BASE, IMAGE = "localhost/base", "localhost/llm-serving-workbench"
TOOLS = {
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "unshare": "util-linux",
    "ip": "iproute2",
}
BUILDAH = ["buildah", "--root", str(FOLDER / "storage"), "--runroot", str(FOLDER / "run")]
KEY = "sk-for-the-test-of-the-image"
SPEC = "{name: chat, model: {max_model_len: 256, kv_cache_gib: 0.25, num_cpus: 1}}"
READY_S = 600
# Without root, HAProxy does not start with Buildah's limit of 1024: it needs two files for each of
# its 5,000 connections, and cannot raise the limit itself. Docker's and containerd's are higher.
OPEN_FILES = "nofile=16384:16384"


class ImageTestError(Exception):
    """The image cannot be built or does not work; the message says which step failed."""


def main() -> None:
    """Build the image and run the checks in it."""
    check_host()
    FOLDER.mkdir(parents=True, exist_ok=True)
    make_base()
    build_image()
    for check in ("user", "serve", "pods"):
        run_inside(check)
    report("passed")


def check_host() -> None:
    """Check what this needs.

    Raises:
        ImageTestError: Something is missing.
    """
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool)]
    if missing:
        raise ImageTestError(f"these tools are missing: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise ImageTestError("debootstrap and chroot need root: sudo make image-test")
    if sys.version_info[:2] != SUITE_PYTHON:
        version = ".".join(map(str, SUITE_PYTHON))
        raise ImageTestError(
            f"the wheels must fit the Python of Debian {SUITE}, {version}, but {sys.executable} "
            f"is another. Name that one: make image-test PYTHON=python{version}"
        )


def make_base() -> None:
    """Make a base image like Docker's for Python, unless there is one: `python`, `pip`, headers."""
    if output("images", "--quiet", "--filter", f"reference={BASE}"):
        return
    report(f"debootstrap {SUITE}")
    if not (ROOTFS / "usr/bin/python3").exists():
        packages = "--include=python3,python3-dev,python3-venv"
        run("debootstrap", "--variant=minbase", packages, SUITE, str(ROOTFS))
    run("chroot", str(ROOTFS), "python3", "-m", "venv", "/usr/local")
    dockerfile = FOLDER / "Dockerfile"
    dockerfile.write_text("FROM scratch\nADD rootfs /\n")
    buildah("build", "--isolation", "chroot", "-f", str(dockerfile), "-t", BASE, str(FOLDER))


def build_image() -> None:
    """Build deploy/Dockerfile with wheels that this host's pip has downloaded."""
    os.environ |= {"WHEELHOUSE": str(WHEELHOUSE), "ACCELERATOR": "cpu"}
    run(sys.executable, str(ROOT / "scripts" / "wheelhouse.py"))
    configuration = FOLDER / "pip.conf"
    configuration.write_text("[global]\nno-index = true\nfind-links = /wheelhouse\n")
    report("buildah build -f deploy/Dockerfile")
    mounts = [f"{WHEELHOUSE}:/wheelhouse:ro", f"{configuration}:/etc/pip.conf:ro"]
    buildah(
        *("build", "--layers", "--isolation", "chroot", "-t", IMAGE),
        *("-f", str(ROOT / "deploy" / "Dockerfile")),
        *("--build-arg", f"BASE={BASE}", "--build-arg", "ACCELERATOR=cpu"),
        *(word for mount in mounts for word in ("--volume", mount)),
        str(ROOT),
    )


def run_inside(check: str) -> None:
    """Run one of the checks in a new container as the image's user.

    The network has only a loopback interface, so that the usual ports are free, and every process
    ends with the check.
    """
    report(f"in the image: {check}")
    container = output("from", "--ulimit", OPEN_FILES, IMAGE)
    script = Path(__file__).resolve()
    inside = ["--isolation", "chroot", "--volume", f"{script}:/check.py:ro", container, "--"]
    command = [*BUILDAH, "run", *inside, "python", "/check.py", check]
    namespaces = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    try:
        run(*namespaces, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command)
    finally:
        buildah("rm", container)


def check_user() -> None:
    """Check the user, the installed packages and that the code cannot be changed."""
    from importlib.metadata import version

    import vllm

    import serving

    expect("user", os.getuid(), 1000)
    expect("torch", version("torch").endswith("+cpu"), True)
    expect("writable code", os.access(Path(str(serving.__file__)).parent, os.W_OK), False)
    report(f"user 1000, vLLM {vllm.__version__}")


def check_serve() -> None:
    """Run `serve run` with a manifest of the kind "serve"."""
    Path("serve.yaml").write_text(manifest("serve"))
    with_service(["serve", "run", "serve.yaml"], dict(os.environ))


def check_pods() -> None:
    """Run the commands of a RayService's pods, as KubeRay composes them."""
    import yaml

    document = yaml.safe_load(manifest("kuberay"))
    cluster = document["spec"]["rayClusterConfig"]
    head, (worker,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    environment = {**os.environ, **pod_environment(head), "RAY_AUTH_MODE": "token"}
    environment["RAY_AUTH_TOKEN"] = "a-token-of-the-test"
    start = ["ray", "start", "--block", "--metrics-export-port"]
    subprocess.Popen([*start, "8080", "--head", *parameters(head)], env=environment)
    wait_for("the head's readiness probe", lambda: probe(head))
    # Both pods share one host here, so that the worker's agent needs other ports.
    ports = ["8081", "--dashboard-agent-listen-port", "52366"]
    joined = ["--address", "127.0.0.1:6379", "--num-cpus", "4", *parameters(worker)]
    subprocess.Popen([*start, *ports, *joined], env=environment)
    Path("config.yaml").write_text(document["spec"]["serveConfigV2"])
    with_service(["serve", "deploy", "config.yaml", "-a", "http://127.0.0.1:8265"], environment)


def manifest(kind: str) -> str:
    """Write a manifest with the image's own command."""
    Path("spec.yaml").write_text(SPEC)
    command = ["python", "-m", "workbench", "manifest", "spec.yaml", "--kind", kind]
    environment = {**os.environ, "LLM_WORKBENCH_API_KEY": KEY}
    return subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def pod_environment(group: dict[str, Any]) -> dict[str, str]:
    """Return the variables of a pod that do not come from a secret."""
    (container,) = group["template"]["spec"]["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def parameters(group: dict[str, Any]) -> list[str]:
    """Return rayStartParams as KubeRay passes them."""
    return [f"--{name}={value}" for name, value in group["rayStartParams"].items()]


def probe(group: dict[str, Any]) -> bool:
    """Send the readiness probe of a pod."""
    (container,) = group["template"]["spec"]["containers"]
    get = container["readinessProbe"]["httpGet"]
    return request(f"http://127.0.0.1:{get['port']}{get['path']}")[0] == 200


def with_service(command: list[str], environment: dict[str, str]) -> None:
    """Run a command that starts the service, and check the service."""
    process = subprocess.Popen(command, env=environment)
    try:
        wait_for(" ".join(command), lambda: is_ready(process))
        expect("models without a key", request("http://127.0.0.1:8000/v1/models")[0], 401)
    finally:
        process.terminate()
        process.wait(60)


def is_ready(process: subprocess.Popen[bytes]) -> bool:
    """Return whether the service answers a request with the key.

    Raises:
        ImageTestError: The command that starts the service has failed.
    """
    if process.poll():
        raise ImageTestError(f"it ended with status {process.returncode}; its output is above")
    return completion() == 200


def completion() -> int:
    """Return the status of a completion with the key."""
    body = {"model": "tiny-llama-glossary", "prompt": "a", "max_tokens": 4}
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    url = "http://127.0.0.1:8000/v1/completions"
    return request(url, json.dumps(body).encode(), headers)[0]


def request(
    url: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Send a request; return the status, or 0 without an answer, and the body."""
    try:
        message = urllib.request.Request(url, body, headers or {})
        with urllib.request.urlopen(message, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:
        return 0, str(error).encode()


def wait_for(name: str, ready: Callable[[], bool]) -> None:
    """Wait until something is ready.

    Raises:
        ImageTestError: It takes longer than READY_S.
    """
    deadline = time.monotonic() + READY_S
    while not ready():
        if time.monotonic() > deadline:
            raise ImageTestError(f"{name} was not ready within {READY_S} s")
        time.sleep(1)
    report(f"{name}: ready")


def expect(name: str, value: object, expected: object) -> None:
    """Raise ImageTestError if a value differs from the expected one."""
    if value != expected:
        raise ImageTestError(f"{name} must be {expected!r}, got {value!r}")


def run(*command: str) -> None:
    """Run a command.

    Raises:
        ImageTestError: It failed.
    """
    if subprocess.run(command, check=False).returncode:
        raise ImageTestError(f"this command failed; its output is above: {' '.join(command)}")


def buildah(*arguments: str) -> None:
    """Run Buildah with a storage of its own."""
    run(*BUILDAH, *arguments)


def output(*arguments: str) -> str:
    """Return what Buildah prints."""
    command = [*BUILDAH, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def report(text: str) -> None:
    """Print a line of progress at once."""
    print(f"image-test: {text}", flush=True)


INSIDE = {"user": check_user, "serve": check_serve, "pods": check_pods}

if __name__ == "__main__":
    try:
        INSIDE.get(sys.argv[1], main)() if len(sys.argv) > 1 else main()
    except ImageTestError as error:
        sys.exit(f"image-test: {error}")
