"""The guide keeps up with the notebooks: every exercise has its answer, about parameters there are,
and the workshop's profile sets only what exists. Where an answer is cheap to run, it is run.
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
    """The text under a notebook's heading Exercise."""
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    found = re.search(r"^## Exercise\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found is not None, f"{path.name} has no exercise"
    return found[1]


def answer(number: str) -> str | None:
    found = re.search(rf"^### {number} .*?\n(.*?)(?=^###? |\Z)", GUIDE, re.M | re.S)
    return found[1] if found else None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestEveryNotebook:
    def test_its_exercise_has_an_answer_about_what_it_sets(self, path: Path) -> None:
        told = answer(path.name[:2])
        assert told is not None, f"docs/instructor.md has no answer to {path.name}"
        sets = set(re.findall(r"`(\w+)(?:\[[^\]]*\])?\s*=", exercise(path)))
        known = set(parameters_of(path))
        assert sets <= known, f"the exercise sets {sets - known}, which the notebook has not"
        for name in sets:
            assert f"`{name}" in told, f"the answer does not say what {name} does"

    def test_it_has_its_line_in_the_day(self, path: Path) -> None:
        assert re.search(rf"^\| {path.name[:2]} ", GUIDE, re.M)

    def test_the_workshops_profile_sets_parameters_there_are(self, path: Path) -> None:
        file = ROOT / "notebooks" / "params" / "workshop" / f"{path.stem}.yaml"
        assert file.exists(), f"the profile workshop has no {file.name}"
        values = yaml.safe_load(file.read_text()) or {}
        assert set(values) <= set(parameters_of(path))
        assert values.get("accelerator", "cpu") == "cpu"


def test_answer_10_a_lease_of_three_minutes() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    at = [start + timedelta(seconds=s) for s in range(241)]
    tenant = Tenant(name="a", key_hash=key_hash("k" * 20))
    place = Lease(tenant=tenant, ends_at=start + timedelta(minutes=3), warn_s=60)
    register, held, told = LeaseRegistry([place], key_hash("l" * 20)), {"class-a": 0}, {}
    for second, now in enumerate(at):
        held["class-a"] = int(second >= 20 and "delete" not in told)
        for kind, _, why in register.tick(held, now):
            told.setdefault(kind, (second, why))
    assert told["warn"] == (120, "the lease ends in 60 s; the deployment goes then")
    assert told["delete"][0] == 180
    (row,) = register.rows({}, at[-1])
    assert (row["left_s"], row["deleted"]) == (-60, "the lease ran out")
    assert 0 < row["replica_s"] < 180


def test_answer_08_three_pairs_call_one_figure_in_four_and_eight_are_surer_not_narrower() -> None:
    rng = np.random.default_rng(1)

    def repeated(pairs: int) -> tuple[float, float]:
        """How often nothing is called a difference, and the median width, of log ratios."""
        found = [
            bootstrap(list(rng.normal(0, 0.1, pairs)), rng=rng, resamples=1000) for _ in range(300)
        ]
        called = np.mean([not one.low <= 0 <= one.high for one in found])
        return float(called), float(np.median([one.high - one.low for one in found]))

    (three, wide), (eight, narrow) = repeated(3), repeated(8)
    assert 0.15 < three < 0.35
    assert 0.02 < eight < 0.12
    assert 0.7 < narrow / wide < 1.3


def test_answer_06_what_fits_eight_cards_and_from_where_it_changes() -> None:
    import workbench as wb

    def layout(model: str, sequences: int) -> str:
        cards = {"kind": "H100", "per_node": [8]}
        found = wb.analysis.plan_layouts(
            model, cards, context=8192, concurrency=sequences
        ).advice.why
        return found.partition(" replica")[0]

    for sequences, expected in ((64, "TP 1 × 8"), (440, "TP 1 × 8"), (441, "TP 2 × 4")):
        assert layout("Llama-3.1-8B", sequences) == expected
    for sequences, expected in ((64, "TP 2 × 4"), (216, "TP 2 × 4"), (217, "TP 4 × 2")):
        assert layout("Mixtral-8x7B", sequences) == expected
    assert layout("Llama-3.1-8B", 505) == "TP 4 × 2"
