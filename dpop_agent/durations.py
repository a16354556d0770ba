"""Durations as people write them: a number and its unit."""

from __future__ import annotations

from dpop_agent.protocol import MAX_SECONDS

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
_MAX_DIGITS = 12


def seconds(text: str) -> int:
    """`90s`, `15m`, `12h`, `30d` or `4w`, in seconds.

    Raises:
        ValueError: it is none; says what one is.
    """
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS_S or not (number.isascii() and number.isdigit()):
        raise ValueError("a duration is a number and its unit, as in 90s, 15m, 12h, 30d or 4w")
    if len(number) > _MAX_DIGITS or (found := int(number) * _UNITS_S[unit]) > MAX_SECONDS:
        raise ValueError("a duration is ten years at most")
    return found


def interval(text: str) -> int:
    """A duration that isn't zero, in seconds.

    Raises:
        ValueError: it is none, or zero.
    """
    found = seconds(text)
    if found == 0:
        raise ValueError("it can't be zero")
    return found


def text(seconds: int) -> str:
    """A duration as people type it: `604800` is `7d`."""
    for unit in "dhm":
        if seconds and seconds % _UNITS_S[unit] == 0:
            return f"{seconds // _UNITS_S[unit]}{unit}"
    return f"{seconds}s"
