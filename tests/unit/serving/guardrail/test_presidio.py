"""What Presidio finds. Ground truth: handmade, labelled texts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.email_guard import EMAIL

from serving.errors import SpecError
from serving.guardrail import presidio
from serving.guardrail.presidio import Detector
from serving.spec.guardrail import EntityRule, PresidioGuardrail

BADGE = """
recognizers:
  - name: Badge numbers
    supported_entity: BADGE
    patterns:
      - {name: badge, regex: 'B-\\d{5}', score: 0.9}
"""


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(PresidioGuardrail(recognizers=BADGE))


def matches(detector: Detector, text: str) -> dict[str, str]:
    return {finding.entity: text[finding.start : finding.end] for finding in detector.find(text)}


class TestPresidio:
    @pytest.mark.parametrize(
        ("text", "entity", "match"),
        [
            (f"Write to {EMAIL} today", "EMAIL_ADDRESS", EMAIL),
            ("Call me on +1 212 555 0199.", "PHONE_NUMBER", "+1 212 555 0199"),
            ("My card is 4111 1111 1111 1111", "CREDIT_CARD", "4111 1111 1111 1111"),
            ("IBAN DE89370400440532013000 please", "IBAN_CODE", "DE89370400440532013000"),
            ("The host is 192.0.2.17", "IP_ADDRESS", "192.0.2.17"),
            ("He wears B-12345 on his coat", "BADGE", "B-12345"),
        ],
    )
    def test_patterns_are_found_without_a_model(
        self, detector: Detector, text: str, entity: str, match: str
    ) -> None:
        assert matches(detector, text).items() >= {entity: match}.items()

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "What is a tensor of rank 4 with shape 12 by 128?",
            "The card 4111 1111 1111 1112 has a wrong check digit",
            "Version 1.2.3 came in 2024",
            "see user@localhost",
        ],
    )
    def test_other_texts_have_no_findings(self, detector: Detector, text: str) -> None:
        assert matches(detector, text) == {}

    def test_rules_apply_by_type_and_score(self) -> None:
        rules = (
            EntityRule(entity="PHONE_NUMBER", min_score=0.9),
            EntityRule(entity="IP_ADDRESS", action="allow"),
            EntityRule(entity="CREDIT_CARD", action="block"),
        )
        text = f"{EMAIL}, +1 212 555 0199, 192.0.2.17, 4111 1111 1111 1111"
        findings = Detector(PresidioGuardrail(rules=rules)).find(text)
        actions = {finding.entity: finding.action for finding in findings}
        assert actions["EMAIL_ADDRESS"] == "redact"
        assert actions["CREDIT_CARD"] == "block"
        assert "IP_ADDRESS" not in actions, "allowed"

    def test_only_the_named_types_are_searched(self) -> None:
        only = Detector(PresidioGuardrail(entities=("URL",)))
        assert matches(only, f"https://example.com/a and {EMAIL}").keys() == {"URL"}

    @pytest.mark.slow  # creates an analyzer per language
    def test_other_languages(self) -> None:
        both = Detector(PresidioGuardrail(languages=("de", "fr")))
        assert matches(both, f"Schreib an {EMAIL}, bitte") == {"EMAIL_ADDRESS": EMAIL}

    def test_a_model_finds_names_and_locations(self, tmp_path: Path) -> None:
        import spacy

        nlp = spacy.blank("en")
        ruler: Any = nlp.add_pipe("entity_ruler")
        ruler.add_patterns(
            [{"label": "PERSON", "pattern": "Jane Roe"}, {"label": "GPE", "pattern": "Utopia"}]
        )
        nlp.to_disk(tmp_path / "names")
        text = "Jane Roe lives in Utopia."
        assert matches(Detector(PresidioGuardrail()), text) == {}
        spec = PresidioGuardrail(nlp_models={"en": str(tmp_path / "names")})
        assert matches(Detector(spec), text) == {"PERSON": "Jane Roe", "LOCATION": "Utopia"}

    def test_a_model_that_spacy_cannot_load_is_named(self) -> None:
        with pytest.raises(SpecError, match=r"nlp_models\['en'\] = 'no_such_model'"):
            Detector(PresidioGuardrail(nlp_models={"en": "no_such_model"}))

    @pytest.mark.parametrize(
        "entry",
        [
            "{name: x}",
            "{name: x, supported_entity: X}",
            "{name: x, supported_entity: X, patterns: [{name: p, regex: '(', score: 1}]}",
            "{name: x, supported_entity: X, patterns: [{name: p}]}",
            "just text",
        ],
    )
    def test_invalid_recognizers_are_refused(self, entry: str) -> None:
        with pytest.raises(SpecError, match=r"guardrail.recognizers: "):
            presidio.check_recognizers(PresidioGuardrail(recognizers=f"recognizers: [{entry}]"))

    @pytest.mark.slow  # starts a process that imports Presidio again
    def test_the_network_is_not_used(self) -> None:
        code = (
            "import socket\n"
            "def refuse(*a, **k): raise SystemExit('the network was used')\n"
            "socket.getaddrinfo = socket.socket.connect = socket.create_connection = refuse\n"
            "from serving.spec.guardrail import PresidioGuardrail\n"
            "from serving.guardrail.presidio import Detector\n"
            f"print(len(Detector(PresidioGuardrail()).find('{EMAIL} http://example.com')))\n"
        )
        process = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=os.environ | {"HOME": "/nonexistent"},
        )
        assert process.stdout.strip() == "1", process.stderr[-2000:]
