"""docs/claims.md and README.md agree with the archived runs; ratios are worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.__main__ import main
from workbench.claims.claim import Claim, RunInfo, Verdict, evaluate_claim, write_verdicts
from workbench.claims.table import (
    ARCHIVE,
    ARCHIVES,
    BEGIN,
    END,
    PAGE,
    README,
    SUMMARY_BEGIN,
    SUMMARY_END,
    archive,
    claims_table,
    read_archived,
    summary_table,
    with_table,
    write_table,
)
from workbench.errors import RunError, SettingError
from workbench.runs.run import Run

CLAIM = Claim(name="10x the users", figure="users within the SLO", goal=10)
PAIRS = ((110.0, 10.0), (120.0, 10.0), (130.0, 10.0))
GPU: dict[str, Any] = {
    "hardware": "NVIDIA H100 80GB HBM3",
    "accelerator": "gpu",
    "model": "a shape of 8B",
}


def evaluated(pairs: Any = PAIRS, *, caveats: tuple[str, ...] = (), **info: Any) -> Verdict:
    fields = {"run_id": "r1", "date": "2026-01-31", "hardware": "a CPU of 2 cores"}
    fields |= {"accelerator": "cpu", "model": "a tiny model"} | info
    rng = np.random.default_rng(0)
    return evaluate_claim(
        CLAIM, "static batches", pairs, where=RunInfo(**fields), rng=rng, caveats=caveats
    )


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def finished(root: Path, verdicts: list[Verdict] | None = None, name: str = "r1") -> Run:
    parameters = {"users": 4, "run_root": str(root), "run_id": name, "live": False, "port": 0}
    run = Run.create(root, {"notebook": "05_users", "parameters": parameters}, run_id=name)
    if verdicts is None:
        rng = np.random.default_rng(0)
        verdicts = [
            evaluate_claim(CLAIM, "static batches", PAIRS, where=RunInfo.from_run(run), rng=rng)
        ]
    write_verdicts(run, verdicts)
    return run


def test_the_documents_contain_the_tables_of_the_archived_runs() -> None:
    """Fails if a figure was edited by hand, or a run was archived without writing the tables."""
    verdicts = [verdict for run in read_archived(ARCHIVES) for verdict in run.verdicts]
    page, readme = PAGE.read_text(encoding="utf-8"), README.read_text(encoding="utf-8")
    summary = summary_table(verdicts)
    assert with_table(page, claims_table(verdicts)) == page, "run `make claims`"
    assert with_table(readme, summary, SUMMARY_BEGIN, SUMMARY_END) == readme, "run `make claims`"


def test_the_summary_has_only_decided_claims() -> None:
    verdicts = [
        evaluated(**GPU),
        evaluated(((10.0, 10.0),) * 3, **GPU).model_copy(update={"opponent": "one at a time"}),
        evaluated(PAIRS[:2]),  # too few pairs, so not decided
    ]
    text = summary_table(verdicts)
    assert rows(text) == [
        [
            "10x the users: at least 10x users within the SLO",
            "NVIDIA H100 80GB HBM3; a shape of 8B",
            "static batches: 12x (11 to 13)",
            "one at a time: 1x (1 to 1)",
        ]
    ]
    assert "with a note" not in text
    noted = summary_table([verdicts[0].model_copy(update={"notes": ("out of memory",)})])
    assert rows(noted)[0][2:] == ["static batches: 12x (11 to 13)\\*", "-"]
    assert "with a note in docs/claims.md" in noted
    assert summary_table(verdicts[2:]) == "No claim has been decided yet.\n"


def test_both_documents_are_written(tmp_path: Path) -> None:
    archive(finished(tmp_path).path, tmp_path / "archive")
    page, readme = tmp_path / "claims.md", tmp_path / "README.md"
    page.write_text(f"# Claims\n{BEGIN}\n{END}\n")
    readme.write_text(f"# Title\n{SUMMARY_BEGIN}\n{SUMMARY_END}\n")
    assert write_table(page, readme, [tmp_path / "archive"]) == 1
    assert "12x (11 to 13), 3 pairs" in page.read_text()
    assert "static batches: 12x (11 to 13)" in readme.read_text()


def test_a_row_has_all_of_a_claim() -> None:
    (row,) = rows(claims_table([evaluated(**GPU)]))
    assert row == [
        "10x the users: at least 10x users within the SLO",
        "static batches",
        "NVIDIA H100 80GB HBM3; a shape of 8B",
        "12x (11 to 13), 3 pairs",  # the cube root of 11 x 12 x 13 is 11.97
        "**PASS**",
        "`r1`",
    ]


def test_rows_of_a_cpu_are_marked() -> None:
    text = claims_table([evaluated()])
    assert rows(text)[0][2] == "CPU: a CPU of 2 cores; a tiny model"
    assert "Rows measured on a CPU use a tiny model" in text
    assert "tiny model" not in claims_table([evaluated(**GPU)])


@pytest.mark.parametrize(
    ("verdict", "measured", "reason"),
    [
        (evaluated(PAIRS[:2]), "11.5x, 2 pairs", "2 of at least 3 repeats"),
        (evaluated(PAIRS[:1]), "11x, 1 pair", "1 of at least 3 repeats"),
        (evaluated(caveats=("the client limited a run",)), "12x (11 to 13), 3 pairs", "the client"),
        (evaluated((), caveats=("static batches were not measured",)), "-", "were not measured"),
    ],
)
def test_an_undecided_claim_has_a_reason(verdict: Verdict, measured: str, reason: str) -> None:
    (row,) = rows(claims_table([verdict]))
    assert row[3] == measured
    assert row[4].startswith("**not decided**: ")
    assert reason in row[4]


def test_the_newest_run_counts_and_gpus_come_first() -> None:
    slow = ((10.0, 10.0),) * 3
    found = rows(
        claims_table(
            [
                evaluated(run_id="new", date="2026-02-02T10:00:00+00:00"),
                evaluated(slow, run_id="old", date="2026-02-01T10:00:00+00:00"),
                evaluated(run_id="gpu", **GPU),
            ]
        )
    )
    assert [row[-1] for row in found] == ["`gpu`", "`new`"]


def test_a_later_run_without_the_opponent_does_not_count() -> None:
    left_out = evaluated((), caveats=("static batches were not measured",), date="2026-03-01")
    (row,) = rows(claims_table([left_out, evaluated()]))
    assert row[3:5] == ["12x (11 to 13), 3 pairs", "**PASS**"]


def test_two_figures_of_one_claim_are_two_rows() -> None:
    other = evaluated()
    claim = CLAIM.model_copy(update={"figure": "users at night"})
    assert len(rows(claims_table([evaluated(), other.model_copy(update={"claim": claim})]))) == 2


def test_a_note_follows_the_verdict() -> None:
    noted = evaluated().model_copy(update={"notes": ("out of memory at batch size 64",)})
    assert rows(claims_table([noted]))[0][4] == "**PASS**; out of memory at batch size 64"


@pytest.mark.parametrize(
    ("opponent", "info", "lacks"),
    [
        ("transformers, continuous batching", GPU, True),
        ("transformers, continuous batching", GPU | {"versions": {"flash-attn": "2.8"}}, False),
        ("transformers, continuous batching", {}, False),
        ("transformers, static batches of 32", GPU, False),
    ],
    ids=["without", "with", "a CPU has none", "another opponent"],
)
def test_an_opponent_without_flash_attention_is_marked(
    opponent: str, info: dict[str, Any], lacks: bool
) -> None:
    text = claims_table([evaluated(**info).model_copy(update={"opponent": opponent})])
    assert ("; without flash attention" in rows(text)[0][4]) == lacks
    assert ("no `flash-attn` package" in text) == lacks


def test_a_bar_in_a_name_does_not_break_the_table() -> None:
    assert "a \\| b" in claims_table([evaluated(model="a | b")])


def test_without_runs_there_is_no_table() -> None:
    assert claims_table([]) == "No run has evaluated a claim yet.\n"


def test_an_archived_run_is_read_back(tmp_path: Path) -> None:
    run = finished(tmp_path)
    path = archive(run.path, tmp_path / "archive")
    (archived,) = read_archived([tmp_path / "archive"])
    assert path.name == "r1.json"
    assert archived.verdicts[0].ratio == pytest.approx((11 * 12 * 13) ** (1 / 3))
    assert archived.parameters == {"users": 4}
    assert (archived.date, archived.machine) == (run.document["date"], run.document["hardware"])
    assert archived.versions["python"]
    assert str(tmp_path) not in path.read_text()


def test_other_results_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "serving_path.json").write_text('{"name": "serving_path", "figures": {}}')
    assert read_archived([tmp_path]) == []
    (tmp_path / "x.json").write_text('{"verdicts": [], "run_id": 3}')
    with pytest.raises(RunError, match=r"x\.json"):
        read_archived([tmp_path])
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(RunError, match=r"x\.json is not JSON"):
        read_archived([tmp_path])


def test_the_command_archives_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(tmp_path)
    assert main(["archive", str(run.path), "--out", str(tmp_path / "archive")]) == 0
    assert json.loads((tmp_path / "archive/r1.json").read_text())["run_id"] == "r1"
    assert "r1.json" in capsys.readouterr().out
    without_claims = Run.create(tmp_path, {}, run_id="other")
    assert main(["archive", str(without_claims.path)]) == 1
    assert "has no claims.json" in capsys.readouterr().err
    assert not (ARCHIVE / "other.json").exists()


def test_the_text_around_the_table_is_unchanged() -> None:
    before = f"# Title\n{BEGIN}\nold\n{END}\nafter\n"
    once = with_table(before, claims_table([evaluated()]))
    assert once.startswith(f"# Title\n{BEGIN}\n\n| claim |")
    assert once.endswith(f"\n{END}\nafter\n")
    assert "old" not in once
    assert with_table(once, claims_table([evaluated()])) == once
    with pytest.raises(SettingError, match="has no lines"):
        with_table("# Title\n", "")
