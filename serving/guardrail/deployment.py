"""The guardrail's deployment: Presidio in its own replicas."""

from __future__ import annotations

from typing import Any

from serving.guardrail.findings import Finding
from serving.guardrail.presidio import Detector
from serving.spec.guardrail import PresidioGuardrail


class Guardrail:
    """Finds personal data in texts; accepts new rules without a restart."""

    def __init__(self) -> None:
        self._detector: Detector | None = None

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply new rules, recognizers and languages."""
        self._detector = Detector(PresidioGuardrail(**user_config))
        # Presidio compiles its patterns at the first call.
        self._detector.find("Write to someone@example.com or call +1 212 555 0100.")

    async def inspect(self, texts: list[str]) -> list[list[Finding]]:
        """Return the findings in each text."""
        assert self._detector is not None, "Serve calls reconfigure before the first request"
        return [self._detector.find(text) for text in texts]
