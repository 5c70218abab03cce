"""Names of files as they may be shown."""

from __future__ import annotations


def printable(name: str) -> str:
    """``name``, spelled out where it holds what a terminal would act on."""
    return name if name.isprintable() else ascii(name)
