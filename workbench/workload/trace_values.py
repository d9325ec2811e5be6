"""Read the values of a trace: numbers, counts of tokens, dates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any


def read_number(value: Any) -> float:
    """Return a time or a count.

    Raises:
        ValueError: It is not a finite number of at least 0.
    """
    if value.__class__ is bool or not isinstance(value, int | float | str):
        raise ValueError("is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError("is not a number") from None
    if 0 <= number < inf:
        return number
    raise ValueError("is negative" if -inf < number < 0 else "is not a finite number")


def read_tokens(value: Any) -> int | None:
    """Return a number of tokens, or None for 0 and for a missing number.

    Raises:
        ValueError: It is not a whole number of at least 0.
    """
    if value.__class__ is int and value > 0:
        return value
    if value.__class__ is str and value.isdecimal():
        return int(value) or None
    if value is None:
        return None
    number = read_number(value)
    if not number.is_integer():
        raise ValueError("is not a whole number")
    return int(number) or None


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def read_date(value: Any) -> float:
    """Return microseconds since 1970. A date without a zone is in UTC; finer digits are cut.

    Raises:
        ValueError: It is not a date.
    """
    try:
        date = datetime.fromisoformat(value.strip())
    except (AttributeError, ValueError):
        raise ValueError("is not a date and time such as 2023-11-16 18:15:46.6805900") from None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return (date - _EPOCH) // _MICROSECOND


def shortened(value: Any) -> str:
    """Return a value as a message repeats it."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
