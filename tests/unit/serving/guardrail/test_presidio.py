"""What Presidio finds. Ground truth: handmade, labelled texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.email_guard import EMAIL

from serving.errors import SpecError
from serving.guardrail import presidio
from serving.guardrail.findings import redacted
from serving.guardrail.presidio import Detector
from serving.spec.guardrail import EntityRule, PresidioGuardrail

BADGE = """
recognizers:
  - name: Badge numbers
    supported_entity: BADGE
    patterns:
      - {name: badge, regex: 'B-\\d{5}', score: 0.9}
"""


ENTITIES = {
    "EMAIL_ADDRESS": EMAIL,
    "PHONE_NUMBER": "+1 212 555 0199",
    "CREDIT_CARD": "4111 1111 1111 1111",
    "IBAN_CODE": "DE89370400440532013000",
    "IP_ADDRESS": "192.0.2.17",
    "US_SSN": "987-65-4321",
}


def full_width(text: str) -> str:
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)


DISGUISES: dict[str, Callable[[str], str]] = {
    "full width": full_width,
    "zero width": lambda text: "\u200b".join(text),
    "spaces": lambda text: text.replace(" ", "\u00a0"),
    "hyphens": lambda text: text.replace("-", "\u2011"),
    "newlines": lambda text: text.replace(" ", "\n"),
    "percent": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
    "entities": lambda text: "".join(f"&#{ord(char)};" for char in text),
    "escapes": lambda text: json.dumps(text.replace("a", "\u200ba"))[1:-1],
}


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(PresidioGuardrail(recognizers=BADGE))


def matches(detector: Detector, text: str) -> dict[str, str]:
    return {finding.entity: text[finding.start : finding.end] for finding in detector.find(text)}


def seconds(call: Callable[[], object]) -> float:
    """Return the processor time of a call."""
    started = time.process_time()
    call()
    return time.process_time() - started


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

    @pytest.mark.parametrize(
        "text",
        [
            "It happened at 1712345678 or 1712345678901, in 1712345678901234 microseconds",
            "Product id 4155550199 and SKU 2125550199",
            "Order 415-555-0199, ticket #415-555-0199, invoice number 212-555-0199",
            "case no. 212-555-0199; Request 212-555-0199",
            "version 1.2.3.4, release 10.20.30.40 and build 4.3.2.1, upgrade to 1.2.3.5",
            "pip install engine==1.2.3.4 and engine-1.2.3.4.tar.gz",
            "section 8.2.4.45",
            "x[::2], x[1::3], a::b, ::, ::1 and 127.0.0.1, mask 255.255.255.0",
            "3.14159265358979, 1234567.891 and 415.5550199",
            "values[4155550199], values[212][555][1234]",
            "$1,299.00, 4 155 550 EUR, €415.55",
            "2024-01-15 10:30:45, 15.01.2024, 01/15/24",
            "Sizes: 128 256 512 1024 2048 4096 8192",
            "4012 5012 6012 4112 4212 5112 4312 5212 in a table",
            "part 987-65-4321, lot 987-65-4321",
            "987654321 tokens, 987 65 4321 rows",
            "EAN 4006381333931, ISBN 978-3-16-148410-0",
            "123e4567-e89b-12d3-a456-426614174000",
            "npm install left-pad@1.3.0, node@18",
            "np.arange(6) + 98172488",
        ],
    )
    def test_ordinary_numbers_are_not_found(self, detector: Detector, text: str) -> None:
        assert matches(detector, text) == {}

    @pytest.mark.parametrize(
        ("text", "entity", "match"),
        [
            ("call 4155550199", "PHONE_NUMBER", "4155550199"),
            ("4155550199 is my phone", "PHONE_NUMBER", "4155550199"),
            ('{"phone": 4155550199}', "PHONE_NUMBER", "4155550199"),
            ("Jane,415-555-0199,NY", "PHONE_NUMBER", "415-555-0199"),
            ("(415) 555-0199", "PHONE_NUMBER", "(415) 555-0199"),
            ("at 020 7946 0123 now", "PHONE_NUMBER", "020 7946 0123"),
            ("tel:+442079460123", "PHONE_NUMBER", "+442079460123"),
            ("call 415\n555\n0199", "PHONE_NUMBER", "415\n555\n0199"),
            ("call ４１５・５５５・０１９９", "PHONE_NUMBER", "４１５・５５５・０１９９"),
            ("4111111111111111", "CREDIT_CARD", "4111111111111111"),
            ("4111.1111.1111.1111", "CREDIT_CARD", "4111.1111.1111.1111"),
            ("4111\u20111111\u20111111\u20111111", "CREDIT_CARD", "4111‑1111‑1111‑1111"),
            ("3782 822463 10005", "CREDIT_CARD", "3782 822463 10005"),
            ("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "CREDIT_CARD", "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"),
            ("card 41111 11111 111111", "CREDIT_CARD", "41111 11111 111111"),
            ("http://192.0.2.1/a", "IP_ADDRESS", "192.0.2.1"),
            ("192.0.2.1:8080", "IP_ADDRESS", "192.0.2.1"),
            ("from 2001:db8::8a2e:370:7334.", "IP_ADDRESS", "2001:db8::8a2e:370:7334"),
            ("ip ::abcd", "IP_ADDRESS", "::abcd"),
            ("987-65-4321", "US_SSN", "987-65-4321"),
            ("SSN 987654321", "US_SSN", "987654321"),
            ("social security 987 65 4321", "US_SSN", "987 65 4321"),
            ("jane.roe at example dot com", "EMAIL_ADDRESS", "jane.roe at example dot com"),
            ("jane.roe[at]example.com", "EMAIL_ADDRESS", "jane.roe[at]example.com"),
            ("jane.roe&#64;example.com", "EMAIL_ADDRESS", "jane.roe&#64;example.com"),
            ("jane.roe%40example.com", "EMAIL_ADDRESS", "jane.roe%40example.com"),
            ("请写信给jane.roe@example.com谢谢", "EMAIL_ADDRESS", "jane.roe@example.com"),
            ("DE89\u00a03704\n0044 0532 0130 00", "IBAN_CODE", "DE89\u00a03704\n0044 0532 0130 00"),
        ],
    )
    def test_forms_context_and_disguises(
        self, detector: Detector, text: str, entity: str, match: str
    ) -> None:
        assert matches(detector, text) == {entity: match}

    @pytest.mark.parametrize(
        "text",
        [
            "look at this dot com bubble",
            "meet me at example.com",
            "v1.2.3.4",
            "cancelled 4155550199",
        ],
    )
    def test_words_that_only_look_like_context(self, detector: Detector, text: str) -> None:
        assert matches(detector, text) == {}

    def test_regions_decide_which_national_numbers_are_found(self) -> None:
        text = "at 020 7946 0123 now"
        assert matches(Detector(PresidioGuardrail(phone_regions=("US",))), text) == {}

    @pytest.mark.parametrize(
        "text", ["1 " * 5000, "9" * 10000, "a." * 5000 + "@", "@a.a" * 2500, "x dot " * 2000]
    )
    def test_long_texts_take_linear_time(self, detector: Detector, text: str) -> None:
        # The shortest of three: a garbage collection within one takes half a second.
        whole_s = min(seconds(partial(detector.find, text)) for _ in range(3))
        double_s = min(seconds(partial(detector.find, text + text)) for _ in range(3))
        assert double_s < 3 * whole_s + 0.2

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        entity=st.sampled_from(sorted(ENTITIES)),
        disguises=st.lists(st.sampled_from(sorted(DISGUISES)), min_size=1, max_size=3),
    )
    def test_disguises_and_combinations_of_them(
        self, detector: Detector, entity: str, disguises: list[str]
    ) -> None:
        value = ENTITIES[entity]
        for name in disguises:
            value = DISGUISES[name](value)
        text = f"Here it is, as you asked: {value} and so on"
        findings = [finding for finding in detector.find(text) if finding.entity == entity]
        assert redacted(text, findings) == f"Here it is, as you asked: <{entity}> and so on"

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
        named = Detector(spec)
        assert matches(named, text) == {"PERSON": "Jane Roe", "LOCATION": "Utopia"}
        assert matches(named, "call 4155550199") == {"PHONE_NUMBER": "4155550199"}, "context"

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
