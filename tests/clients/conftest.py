"""One deployment of each path and one process of each client, and the table of results."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.client_endpoints import Served, deployed
from support.client_programs import ClientProgram
from support.client_table import Results, write_table
from support.paths import ROOT

pytest.register_assert_rewrite("clients.judge")

RESULTS = pytest.StashKey[Results]()
TABLE = "CLIENTS_TABLE"


def results(config: pytest.Config) -> Results:
    return config.stash.setdefault(RESULTS, Results())


@pytest.fixture(scope="session")
def served() -> Iterator[dict[str, Served]]:
    with deployed() as endpoints:
        yield endpoints


@pytest.fixture(scope="session")
def programs(request: pytest.FixtureRequest) -> Iterator[Callable[[str], ClientProgram]]:
    """A function that returns a client's program, and starts it if it does not run."""
    running: dict[str, ClientProgram] = {}
    with ExitStack() as ends:

        def program(name: str) -> ClientProgram:
            if name not in running or running[name].ended:
                running[name] = ends.enter_context(ClientProgram(name))
                results(request.config).versions[name] = running[name].version
            return running[name]

        yield program


@pytest.fixture
def versions(request: pytest.FixtureRequest) -> dict[str, str]:
    """The version of each client, for the table."""
    return results(request.config).versions


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the result of each check."""
    report = yield
    case = getattr(getattr(item, "callspec", None), "params", {})
    if {"client", "check", "path"} <= case.keys() and (report.when == "call" or not report.passed):
        error = call.excinfo.value if call.excinfo else None
        results(item.config).add(case["client"], case["check"], case["path"], report, error)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table of results to the file that CLIENTS_TABLE names."""
    path = os.environ.get(TABLE)
    if path and results(session.config).outcomes:
        write_table(results(session.config), ROOT / Path(path))
