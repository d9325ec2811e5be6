"""A pipeline as data: what agrees is taken, and what does not is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serving.errors import SpecError
from serving.spec.guardrail import GuardAnswerFormat, GuardEndpoint, GuardModel, PresidioGuardrail
from serving.spec.model import ModelSpec
from serving.spec.pipeline import PipelineSpec
from serving.spec.router import (
    BudgetRule,
    CodeRule,
    EmbeddingClassifier,
    LanguageRule,
    LengthRule,
    RouterSpec,
    TenantRule,
)
from serving.spec.scaling import ScalingSpec
from serving.spec.service import ServiceSpec

SMALL, LARGE = ModelSpec(id="small"), ModelSpec(id="large")


def pipeline(**fields: Any) -> PipelineSpec:
    return PipelineSpec(**{"models": (LARGE, SMALL)} | fields)


def refusal(**fields: Any) -> str:
    with pytest.raises(SpecError) as caught:
        pipeline(**fields)
    return str(caught.value)


class TestBothKindsOfSpec:
    def test_both_have_models_and_know_their_path(self) -> None:
        assert ServiceSpec().models == (ServiceSpec().model,)
        assert pipeline().models == (LARGE, SMALL)
        assert (ServiceSpec().composed, pipeline().composed) == (False, True)

    def test_what_loads_a_model_is_what_answers_and_what_guards(self) -> None:
        guard = ModelSpec(id="guard")
        assert pipeline(guardrail=GuardModel(model=guard)).engines == (LARGE, SMALL, guard)
        assert pipeline(guardrail=PresidioGuardrail()).engines == (LARGE, SMALL)
        assert ServiceSpec().engines == ServiceSpec().models

    def test_cpus_of_what_loads_no_model(self) -> None:
        scaling = ScalingSpec(max_replicas=3)
        guardrail = PresidioGuardrail(num_cpus=2, scaling=scaling)
        assert pipeline().helpers_cpus == 0
        spec = pipeline(guardrail=guardrail, router=RouterSpec(num_cpus=0.5, replicas=4))
        assert spec.helpers_cpus == 2 * 3 + 0.5 * 4

    def test_each_model_has_a_version_of_its_own(self) -> None:
        other = pipeline(models=(LARGE, ModelSpec(id="small", max_model_len=64)))
        assert pipeline().engine_fingerprint(LARGE) == other.engine_fingerprint(LARGE)
        assert pipeline().engine_fingerprint(SMALL) != other.engine_fingerprint(other.models[1])
        assert pipeline().fingerprint() != other.fingerprint()


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"models": ()}, "PipelineSpec.models"),
            ({"models": (SMALL, SMALL)}, "small stands there more than once"),
            ({"models": (ModelSpec(id="auto"),)}, "'auto' has a meaning"),
            ({"models": (ModelSpec(id="router"),)}, "'router' has a meaning"),
            ({"guardrail": GuardModel(model=SMALL)}, "small stands there more than once"),
            ({"router": RouterSpec(default="big")}, "router names big"),
            ({"router": {"rules": [{"kind": "lenght", "model": "small"}]}}, "lenght"),
        ],
    )
    def test_names_that_do_not_agree(self, fields: dict[str, Any], said: str) -> None:
        assert said in refusal(**fields)

    @pytest.mark.parametrize(
        "rule",
        [
            LengthRule(model="big"),
            CodeRule(model="big"),
            LanguageRule(model="big", languages=("de",)),
            TenantRule(model="big", tenants=("a",)),
            BudgetRule(usd_per_million_tokens={"big": 1}),
        ],
    )
    def test_a_rule_for_a_model_that_is_not_there(self, rule: Any) -> None:
        assert "router names big" in refusal(router=RouterSpec(rules=(rule,)))

    def test_a_classifier_for_a_model_that_is_not_there(self) -> None:
        classifier = EmbeddingClassifier(path="x", examples={"small": ("a",), "big": ("b",)})
        assert "router names big" in refusal(router=RouterSpec(classifier=classifier))

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"recognizers": "a: ["}, "is not YAML"),
            ({"recognizers": "names: []"}, "the key 'recognizers'"),
            ({"recognizers": "nowhere.yaml"}, "cannot be read"),
            ({"nlp_models": {"de": "x"}}, "nlp_models names de"),
            ({"rules": [{"entity": "email"}]}, "EntityRule"),
            ({"min_score": 2}, "min_score"),
        ],
    )
    def test_of_a_guardrail(self, fields: dict[str, Any], said: str) -> None:
        with pytest.raises(SpecError, match=said):
            PresidioGuardrail(**fields)

    def test_of_a_guard_model(self) -> None:
        with pytest.raises(SpecError, match="where the text to judge goes"):
            GuardModel(model=SMALL, template="judge this")
        with pytest.raises(SpecError, match="is no regular expression"):
            GuardAnswerFormat(unsafe="(")
        with pytest.raises(SpecError, match="base_url"):
            GuardEndpoint(base_url="localhost", model_id="x")


class TestAGuardrailsRules:
    def test_a_type_has_its_own_rule_or_the_guardrails(self) -> None:
        guardrail = PresidioGuardrail(
            action="block",
            min_score=0.7,
            rules=({"entity": "URL", "action": "allow"},),
        )
        assert guardrail.rule("URL").action == "allow"
        assert guardrail.rule("PERSON").action == "block"
        assert guardrail.rule("PERSON").min_score == 0.7

    def test_recognizers_are_read_from_a_file_at_once(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text("recognizers: []\n")
        assert PresidioGuardrail(recognizers=str(file)).recognizers == "recognizers: []\n"


@pytest.mark.parametrize(
    "spec",
    [
        PipelineSpec(),
        PresidioGuardrail(),
        GuardModel(model=SMALL),
        GuardEndpoint(base_url="http://x/v1", model_id="x"),
        RouterSpec(),
        LengthRule(model="x"),
        BudgetRule(usd_per_million_tokens={"x": 1}),
    ],
)
def test_a_spec_is_frozen_and_every_field_described(spec: Any) -> None:
    for name, field in type(spec).model_fields.items():
        assert (field.description or "").endswith("."), name
        with pytest.raises(ValidationError, match="frozen"):
            setattr(spec, name, getattr(spec, name))


def test_a_spec_survives_json() -> None:
    spec = pipeline(
        guardrail=PresidioGuardrail(rules=({"entity": "URL", "action": "allow"},)),
        router=RouterSpec(rules=(CodeRule(model="large"),)),
    )
    assert PipelineSpec.model_validate_json(spec.model_dump_json()) == spec
