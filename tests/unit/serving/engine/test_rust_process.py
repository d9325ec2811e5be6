"""The process of the Rust front end: its arguments, its sockets, and its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest
from support.gate_server import wait_until
from support.paths import ROOT
from support.rust_program import END, SERVE, write_program

from serving.engine import rust_process
from serving.engine.hub_token import hide_hub_token
from serving.engine.rust_process import RustProcess
from serving.spec.model import ModelSpec


def spec(program: Path) -> ModelSpec:
    return ModelSpec(id="named", max_model_len=512, env={"VLLM_RUST_FRONTEND_PATH": str(program)})


def ask(path: str) -> httpx.Response:
    with httpx.Client(transport=httpx.HTTPTransport(uds=path), timeout=60) as client:
        return client.get("http://rust/health")


def is_ready(process: RustProcess) -> Callable[[], Awaitable[bool]]:
    async def ready() -> bool:
        try:
            return ask(process.socket).status_code == 200
        except httpx.HTTPError:
            return False

    return ready


class Ended(RustProcess):
    """Ends with the test."""

    def close(self) -> None:
        self.end()


def test_it_gets_its_socket_its_addresses_and_the_model(tmp_path: Path) -> None:
    with closing(Ended(spec(write_program(tmp_path)))) as process:
        asyncio.run(process.wait_until_ready(is_ready(process)))
        command, *options = ask(process.socket).json()
        values = dict(zip(options[::2], options[1::2], strict=True))
        assert command == "frontend"
        assert values["--input-address"] == process.input_address
        assert values["--output-address"] == process.output_address
        arguments = json.loads(values["--args-json"])
        assert arguments["model_tag"] == ModelSpec().path
        assert arguments["served_model_name"] == ["named"]
        assert arguments["max_model_len"] == 512


ENVIRONMENT = SERVE.replace("import json, socket, sys", "import json, os, socket, sys").replace(
    "json.dumps(sys.argv[1:])", "json.dumps(dict(os.environ))"
)


def test_it_gets_the_hub_token_of_the_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program reads only the variable, which the replica does not have."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "")
    monkeypatch.setenv("HF_TOKEN_PATH", "")
    monkeypatch.setenv("HF_TOKEN", "the-secret")
    hide_hub_token()
    with closing(Ended(spec(write_program(tmp_path, run=ENVIRONMENT)))) as process:
        asyncio.run(process.wait_until_ready(is_ready(process)))
        assert ask(process.socket).json()["HF_TOKEN"] == "the-secret"
    assert "HF_TOKEN" not in os.environ


@pytest.mark.parametrize(("own", "level"), [(None, "warn"), ("debug", "debug")])
def test_its_messages_have_the_level_that_the_environment_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None, level: str
) -> None:
    monkeypatch.delenv("RUST_LOG", raising=False)
    if own is not None:
        monkeypatch.setenv("RUST_LOG", own)
    with closing(Ended(spec(write_program(tmp_path, run=ENVIRONMENT)))) as process:
        asyncio.run(process.wait_until_ready(is_ready(process)))
        assert ask(process.socket).json()["RUST_LOG"] == level


def test_no_other_user_reaches_its_sockets(tmp_path: Path) -> None:
    with closing(Ended(spec(write_program(tmp_path)))) as process:
        folder = Path(process.socket).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for address in (process.input_address, process.output_address):
            assert Path(address.removeprefix("ipc://")).parent == folder
    assert not folder.exists()


def test_one_that_ends_before_it_answers(tmp_path: Path) -> None:
    with closing(Ended(spec(write_program(tmp_path, run=END)))) as process:
        with pytest.raises(RuntimeError, match="ended with status 3"):
            asyncio.run(process.wait_until_ready(is_ready(process)))
        with pytest.raises(RuntimeError, match="ended with status 3"):
            process.check()


def test_one_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rust_process, "READY_TIMEOUT_S", 0.3)

    async def silent() -> bool:
        return False

    with closing(Ended(spec(write_program(tmp_path)))) as process:
        with pytest.raises(RuntimeError, match=r"does not answer after 0\.3 s"):
            asyncio.run(process.wait_until_ready(silent))
        process.check()


def test_it_ends_with_a_replica_that_is_killed(tmp_path: Path) -> None:
    program = write_program(tmp_path)
    code = (
        "import sys, time\n"
        "from serving.engine.rust_process import RustProcess\n"
        "from serving.spec.model import ModelSpec\n"
        "process = RustProcess(ModelSpec(env={'VLLM_RUST_FRONTEND_PATH': sys.argv[1]}))\n"
        "print(process._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    replica = subprocess.Popen(
        [sys.executable, "-c", code, program],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert replica.stdout is not None
    child = psutil.Process(int(replica.stdout.readline()))
    wait_until(lambda: "frontend" in child.cmdline() and "-I" not in child.cmdline())
    os.kill(replica.pid, signal.SIGKILL)
    replica.wait()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
