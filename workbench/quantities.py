"""Numbers as people read them: three significant digits, with their unit."""

from __future__ import annotations

import math
from typing import Any

NONE = "-"
"""What stands for a missing value."""
TICKS: dict[str, Any] = {"exponentformat": "none", "separatethousands": True}
"""The numbers on plotly's axes: no powers of ten and no prefixes such as "600µ"."""
SHARE_TICKS = ".3~p"
"""The format of ticks of a share: as many digits as neighbouring ticks need, such as 0.5%."""

_ACRONYMS = {name: name.upper() for name in ("kv", "slo", "ttft", "tpot", "itl", "gpu", "cpu")}
_SECONDS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))


def significant(value: float | None) -> str:
    """Return `value` with three significant digits and commas, and never with an exponent.

    Whole numbers keep all their digits. A missing value or NaN is `NONE`.
    """
    if value is None or math.isnan(value):
        return NONE
    if isinstance(value, int) or value == 0 or math.isinf(value):
        return f"{value:,.0f}" if value == 0 else f"{value:,}"
    rounded = float(f"{value:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    text = f"{rounded:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text


def words(field: str) -> str:
    """Return the name of a field in words: "Upscale delay (s)" for `upscale_delay_s`."""
    name, unit = (field[:-2], " (s)") if field.endswith("_s") else (field, "")
    text = " ".join(_ACRONYMS.get(word, word) for word in name.split("_"))
    return text[:1].upper() + text[1:] + unit


def quantity(value: float | None, unit: str = "") -> str:
    """Return `value` with its unit: "16.7 s" for 16716.22 ms, "12.3%" for a share of 0.1234.

    Args:
        value: The number; None and NaN give `NONE`.
        unit: "s" and "ms" choose the larger or smaller unit that reads best. "share" is a
            percentage, "$" and units that begin with it are dollars, and "requests" are counts.
    """
    if value is None or math.isnan(value):
        return NONE
    if unit in ("s", "ms"):
        return _duration(value * (1e-3 if unit == "ms" else 1.0))
    if unit == "share":
        return f"{significant(100.0 * value)}%"
    if unit.startswith("$"):
        return f"${significant(value)}{unit[1:]}"
    if unit == "requests":
        return significant(round(value))
    return f"{significant(value)} {unit}".rstrip()


def rough_duration(seconds: float) -> str:
    """Return an estimate in whole seconds, or in whole minutes from 100 s on."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _duration(seconds: float) -> str:
    if seconds == 0:
        return "0 s"
    # After rounding, so that 999.9 ms is 1 s.
    rounded = abs(float(f"{seconds:.3g}"))
    unit, scale = next((pair for pair in _SECONDS if rounded >= pair[1]), _SECONDS[-1])
    return f"{significant(float(seconds / scale))} {unit}"
