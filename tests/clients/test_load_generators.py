"""Other projects' load generators against an endpoint of each path.

What they report is compared with what the service has counted for their key.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.client_endpoints import CAPACITY, Served
from support.load_generators import GENERATORS, OUTPUT_TOKENS, Load

# The first test waits for both deployments.
pytestmark = [pytest.mark.engine, pytest.mark.clients, pytest.mark.timeout(600)]

CASES = [
    pytest.param(client, check, path, id=f"{client}-{check}-{path}")
    for client in GENERATORS
    for path in ("direct", "composed")
    for check in ("load", "overload")
]


@pytest.mark.parametrize(("client", "check", "path"), CASES)
def test_load_generator(
    client: str,
    check: str,
    path: str,
    served: dict[str, Served],
    versions: dict[str, str],
    tmp_path: Path,
) -> None:
    endpoint, generator = served[path], GENERATORS[client]
    versions[client] = generator.version()
    before = endpoint.settled()
    load = Load(8, 2) if check == "load" else Load(16, 2 * CAPACITY)
    report = generator.run(endpoint.target, load, tmp_path)
    assert report.succeeded + report.failed == load.requests
    expected = {"requests": load.requests, "shed": report.failed}
    expected["output_tokens"] = report.output_tokens
    assert endpoint.wait_for_count(before, **expected) == expected
    if check == "load":
        assert report.failed == 0
        assert report.output_tokens == load.requests * OUTPUT_TOKENS
    else:
        assert report.succeeded >= CAPACITY
        assert report.failed > 0, "nothing was shed, although more was sent than fits"
