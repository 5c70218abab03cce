"""Moments as logs write them, in seconds since 1970."""

from __future__ import annotations

from datetime import datetime, timezone

# Seconds beyond this are of no log: a number that large counts milli-, micro- or nanoseconds.
_MOST_SECONDS = 1e11


def seconds_since_1970(value: str | float) -> float:
    """From a number (seconds, or by its size milli-, micro- or nanoseconds) or ISO 8601; a time without an offset is
    UTC's. Raises ValueError where a text is no time.

    >>> seconds_since_1970("2026-01-01T00:00:00.1234567+02:00") == seconds_since_1970(1767218400123456)
    True
    """
    if isinstance(value, str):
        moment = datetime.fromisoformat(_iso(value))
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    made = float(value)
    for _ in range(3):
        if made > _MOST_SECONDS:
            made /= 1000
    return made


def _iso(text: str) -> str:
    """As Python 3.10 reads it: +00:00 for Z, six digits of a second."""
    text = text.strip()[:64]
    text = text[:-1] + "+00:00" if text[-1:] in ("Z", "z") else text
    whole, dot, rest = text.partition(".")
    digits = len(rest) - len(rest.lstrip("0123456789"))
    return f"{whole}.{rest[:digits][:6]:0<6}{rest[digits:]}" if dot and digits else text
