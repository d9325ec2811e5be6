"""The instructor's guide matches the notebooks.

Every exercise has an answer about existing parameters, and the workshop profile sets existing
parameters only. Answers that are cheap to compute are checked.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from support.paths import ROOT

from serving.classroom.leases import Lease, LeaseRegistry
from serving.spec.tenants import Tenant, key_hash
from workbench.automation.notebooks import parameters_of
from workbench.metrics.bootstrap import bootstrap

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
GUIDE = (ROOT / "docs" / "instructor.md").read_text()


def exercise(path: Path) -> str:
    """Return the text under a notebook's heading Exercise."""
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    match = re.search(r"^## Exercise\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert match is not None, f"{path.name} has no exercise"
    return match[1]


def answer(number: str) -> str | None:
    """Return the guide's answer to a notebook's exercise."""
    match = re.search(rf"^### {number} .*?\n(.*?)(?=^###? |\Z)", GUIDE, re.M | re.S)
    return match[1] if match else None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestEveryNotebook:
    def test_exercise_has_an_answer_about_its_parameters(self, path: Path) -> None:
        text = answer(path.name[:2])
        assert text is not None, f"docs/instructor.md has no answer to {path.name}"
        parameters = set(re.findall(r"`(\w+)(?:\[[^\]]*\])?\s*=", exercise(path)))
        known = set(parameters_of(path))
        assert parameters <= known, f"unknown parameters: {parameters - known}"
        for name in parameters:
            assert f"`{name}" in text, f"the answer does not mention {name}"

    def test_notebook_is_in_the_schedule(self, path: Path) -> None:
        assert re.search(rf"^\| {path.name[:2]} ", GUIDE, re.M)

    def test_workshop_profile_sets_existing_parameters(self, path: Path) -> None:
        file = ROOT / "notebooks" / "params" / "workshop" / f"{path.stem}.yaml"
        assert file.exists(), f"the workshop profile has no {file.name}"
        values = yaml.safe_load(file.read_text()) or {}
        assert set(values) <= set(parameters_of(path))
        assert values.get("accelerator", "cpu") == "cpu"


def test_answer_10_lease_of_three_minutes() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    at = [start + timedelta(seconds=s) for s in range(241)]
    tenant = Tenant(name="a", key_hash=key_hash("k" * 20))
    lease = Lease(tenant=tenant, ends_at=start + timedelta(minutes=3), warn_s=60)
    registry, replicas = LeaseRegistry([lease], key_hash("l" * 20)), {"class-a": 0}
    actions: dict[str, tuple[int, str]] = {}
    for second, now in enumerate(at):
        replicas["class-a"] = int(second >= 20 and "delete" not in actions)
        for kind, _, message in registry.update(replicas, now):
            actions.setdefault(kind, (second, message))
    assert actions["warn"] == (120, "the lease ends in 60 s; the deployment is deleted then")
    assert actions["delete"][0] == 180
    (row,) = registry.table({}, at[-1])
    assert (row["left_s"], row["deleted"]) == (-60, "the lease ended")
    assert 0 < row["replica_s"] < 180


def test_answer_08_eight_pairs_give_fewer_false_differences_than_three() -> None:
    rng = np.random.default_rng(1)

    def repeated(pairs: int) -> tuple[float, float]:
        """Return how often no difference is called one, and the median interval width."""
        intervals = [
            bootstrap(list(rng.normal(0, 0.1, pairs)), rng=rng, resamples=1000) for _ in range(300)
        ]
        called = np.mean([not i.low <= 0 <= i.high for i in intervals])
        return float(called), float(np.median([i.high - i.low for i in intervals]))

    (three, wide), (eight, narrow) = repeated(3), repeated(8)
    assert 0.15 < three < 0.35
    assert 0.02 < eight < 0.12
    assert 0.7 < narrow / wide < 1.3


def test_answer_06_recommended_layouts_on_eight_gpus() -> None:
    import workbench as wb

    def layout(model: str, sequences: int) -> str:
        cards = {"kind": "H100", "per_node": [8]}
        plans = wb.analysis.plan_layouts(model, cards, context=8192, concurrency=sequences)
        return plans.advice.reason.partition(" replica")[0]

    for sequences, expected in ((64, "TP 1 × 8"), (440, "TP 1 × 8"), (441, "TP 2 × 4")):
        assert layout("Llama-3.1-8B", sequences) == expected
    for sequences, expected in ((64, "TP 2 × 4"), (216, "TP 2 × 4"), (217, "TP 4 × 2")):
        assert layout("Mixtral-8x7B", sequences) == expected
    assert layout("Llama-3.1-8B", 505) == "TP 4 × 2"


def test_the_file_of_keys_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    (path,) = (path for path in NOTEBOOKS if path.name.startswith("10_"))
    cells = nbformat.read(path, as_version=4).cells
    (source,) = (cell.source for cell in cells if "if keys_file:" in cell.source)
    file = tmp_path / "keys"
    file.touch(mode=0o644)
    values = parameters_of(path) | {"keys_file": str(file)}
    exec(source, values)
    assert file.stat().st_mode & 0o777 == 0o600
    names = [line.split()[0] for line in file.read_text().splitlines()]
    assert names == values["names"]
