"""The fields of the specifications, against pydantic's own JSON schema."""

from __future__ import annotations

import pytest

import workbench as wb
from workbench.__main__ import main
from workbench.fields import specifications


@pytest.mark.parametrize("name", sorted(specifications(wb)))
def test_every_field_and_its_description_is_printed(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fields", name]) == 0
    out = " ".join(capsys.readouterr().out.split())
    schema = specifications(wb)[name].model_json_schema()["properties"]
    for field, details in schema.items():
        assert f" {field} " in out
        assert " ".join(details.get("description", "").split()) in out


def test_all_are_printed_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fields"]) == 0
    out = capsys.readouterr().out
    assert {"ModelSpec", "ServiceSpec", "PipelineSpec", "LoadSpec", "SLO"} <= set(
        specifications(wb)
    )
    assert all(f"{name}: " in out for name in specifications(wb))


def test_unknown_name_is_rejected_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fields", "ModelSpecs"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("SPEC must be one of")
    assert error.count("\n") == 1
