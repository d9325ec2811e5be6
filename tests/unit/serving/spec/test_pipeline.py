"""Pipeline specifications: derived values, name checks, guardrails and routers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serving.errors import SpecError
from serving.spec.guardrail import GuardAnswerFormat, GuardEndpoint, GuardModel, PresidioGuardrail
from serving.spec.model import ModelSpec, served_names
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


def error_of(**fields: Any) -> str:
    """Return the message of the SpecError that these fields cause."""
    with pytest.raises(SpecError) as caught:
        pipeline(**fields)
    return str(caught.value)


def with_adapter(adapter: str, **fields: Any) -> ModelSpec:
    return ModelSpec(adapters={adapter: f"org/{adapter}"}, **fields)


class TestServedNames:
    def test_every_name_and_its_model(self) -> None:
        models = (
            ModelSpec(source="org/model", id="mine"),
            with_adapter("pirate", source="other/base-7B"),
            SMALL,
        )
        assert served_names(models) == {
            "mine": "mine",
            "org/model": "mine",
            "model": "mine",
            "base-7B": "base-7B",
            "other/base-7B": "base-7B",
            "pirate": "base-7B",
            "small": "small",
        }

    def test_an_alias_of_several_models_names_none_of_them(self) -> None:
        models = (ModelSpec(source="org/model", id="a"), ModelSpec(source="org/model", id="b"))
        assert served_names(pipeline(models=models).models) == {"a": "a", "b": "b"}

    def test_an_id_or_an_adapter_comes_before_an_alias(self) -> None:
        models = (ModelSpec(source="org/model"), ModelSpec(source="other/model", id="second"))
        assert served_names(pipeline(models=models).models)["model"] == "model"
        models = (with_adapter("model", id="a"), ModelSpec(source="org/model", id="b"))
        assert served_names(pipeline(models=models).models)["model"] == "a"

    @pytest.mark.parametrize(
        ("models", "name"),
        [
            ((with_adapter("pirate", id="a"), with_adapter("pirate", id="b")), "pirate"),
            ((with_adapter("b", id="a"), ModelSpec(id="b")), "b"),
            ((ModelSpec(id="b"), with_adapter("b", id="a")), "b"),
        ],
    )
    def test_one_name_of_two_models_is_an_error_that_names_both(
        self, models: tuple[ModelSpec, ...], name: str
    ) -> None:
        message = error_of(models=models)
        assert f"both answer to {name!r}" in message
        for model in models:
            assert repr(model.model_id) in message

    def test_an_adapter_named_as_the_router(self) -> None:
        assert "'auto'" in error_of(models=(with_adapter("auto", id="a"),))


class TestDerivedValues:
    def test_models_and_serving_path(self) -> None:
        assert ServiceSpec().models == (ServiceSpec().model,)
        assert pipeline().models == (LARGE, SMALL)
        assert (ServiceSpec().composed, pipeline().composed) == (False, True)

    def test_engines_include_the_guard_model(self) -> None:
        guard = ModelSpec(id="guard")
        assert pipeline(guardrail=GuardModel(model=guard)).engines == (LARGE, SMALL, guard)
        assert pipeline(guardrail=PresidioGuardrail()).engines == (LARGE, SMALL)
        assert ServiceSpec().engines == ServiceSpec().models

    def test_auxiliary_cpus(self) -> None:
        scaling = ScalingSpec(max_replicas=3)
        guardrail = PresidioGuardrail(num_cpus=2, scaling=scaling)
        assert pipeline().auxiliary_cpus == 0
        spec = pipeline(guardrail=guardrail, router=RouterSpec(num_cpus=0.5, replicas=4))
        assert spec.auxiliary_cpus == 2 * 3 + 0.5 * 4

    def test_each_model_has_its_own_engine_fingerprint(self) -> None:
        other = pipeline(models=(LARGE, ModelSpec(id="small", max_model_len=64)))
        assert pipeline().engine_fingerprint(LARGE) == other.engine_fingerprint(LARGE)
        assert pipeline().engine_fingerprint(SMALL) != other.engine_fingerprint(other.models[1])
        assert pipeline().fingerprint() != other.fingerprint()


class TestValidation:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"models": ()}, "PipelineSpec.models"),
            ({"models": (SMALL, SMALL)}, "got small more than once"),
            ({"models": (ModelSpec(id="auto"),)}, "reserved id 'auto'"),
            ({"models": (ModelSpec(id="router"),)}, "reserved id 'router'"),
            ({"guardrail": GuardModel(model=SMALL)}, "got small more than once"),
            (
                {"router": RouterSpec(default="big")},
                "router must name models of the pipeline, got big",
            ),
            ({"router": {"rules": [{"kind": "lenght", "model": "small"}]}}, "lenght"),
        ],
    )
    def test_names_must_be_consistent(self, fields: dict[str, Any], message: str) -> None:
        assert message in error_of(**fields)

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
    def test_rule_must_name_a_model_of_the_pipeline(self, rule: Any) -> None:
        assert "router must name models of the pipeline, got big" in error_of(
            router=RouterSpec(rules=(rule,))
        )

    def test_classifier_must_name_models_of_the_pipeline(self) -> None:
        classifier = EmbeddingClassifier(path="x", examples={"small": ("a",), "big": ("b",)})
        assert "router must name models of the pipeline, got big" in error_of(
            router=RouterSpec(classifier=classifier)
        )

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"recognizers": "a: ["}, "must be YAML"),
            ({"recognizers": "names: []"}, "the key 'recognizers'"),
            ({"recognizers": "nowhere.yaml"}, "a readable file .*got 'nowhere.yaml'; check"),
            ({"nlp_models": {"de": "x"}}, "nlp_models must be keyed by languages .*got de"),
            ({"rules": [{"entity": "email"}]}, "EntityRule"),
            ({"min_score": 2}, "min_score"),
        ],
    )
    def test_presidio_guardrail(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(SpecError, match=message):
            PresidioGuardrail(**fields)

    def test_guard_model(self) -> None:
        with pytest.raises(SpecError, match=r"template must contain \{text\}"):
            GuardModel(model=SMALL, template="judge this")
        with pytest.raises(SpecError, match="unsafe must be a regular expression"):
            GuardAnswerFormat(unsafe="(")
        with pytest.raises(SpecError, match="base_url"):
            GuardEndpoint(base_url="localhost", model_id="x")


class TestGuardrailRules:
    def test_entity_has_its_own_rule_or_the_guardrails(self) -> None:
        guardrail = PresidioGuardrail(
            action="block",
            min_score=0.7,
            rules=({"entity": "URL", "action": "allow"},),
        )
        assert guardrail.rule("URL").action == "allow"
        assert guardrail.rule("PERSON").action == "block"
        assert guardrail.rule("PERSON").min_score == 0.7

    def test_recognizers_are_read_from_a_file(self, tmp_path: Path) -> None:
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
def test_spec_is_frozen_and_every_field_is_described(spec: Any) -> None:
    for name, field in type(spec).model_fields.items():
        assert (field.description or "").endswith("."), name
        with pytest.raises(ValidationError, match="frozen"):
            setattr(spec, name, getattr(spec, name))


def test_spec_survives_a_json_round_trip() -> None:
    spec = pipeline(
        guardrail=PresidioGuardrail(rules=({"entity": "URL", "action": "allow"},)),
        router=RouterSpec(rules=(CodeRule(model="large"),)),
    )
    assert PipelineSpec.model_validate_json(spec.model_dump_json()) == spec
