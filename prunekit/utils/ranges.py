"""Runs of numbers as text: units that are kept, layers that stay whole."""

from __future__ import annotations

from prunekit.errors import PrunekitError


def encode_ranges(indices: tuple[int, ...]) -> str:
    """Rising indices as text a diff can show: ``(0, 1, 2, 5)`` → ``"0-2,5"``."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def decode_ranges(text: str, limit: int) -> tuple[int, ...]:
    """Reverse of :func:`encode_ranges`. Raises PrunekitError where an index is not below ``limit``, or out of order."""
    indices: list[int] = []
    try:
        if not isinstance(text, str):
            raise ValueError
        for run in text.split(","):
            first, _, last = run.partition("-")
            start, stop = int(first), int(last or first)
            if stop >= limit or start > stop or (indices and start <= indices[-1]):
                raise PrunekitError(
                    f"The plan keeps units {run[:60]!r}, but they must rise and stay below {limit}; make it again."
                )
            indices.extend(range(start, stop + 1))
    except ValueError:
        raise PrunekitError(
            f"{str(text)[:60]!r} is not a list of unit ranges like '0-2,5'. Make the plan again."
        ) from None
    return tuple(indices)


def parse_layers(text: str | None) -> frozenset[int]:
    """``"0,2-4"`` → {0, 2, 3, 4}, ``"none"`` → {}. Raises PrunekitError for anything else."""
    if (text or "").strip() == "none":
        return frozenset()
    layers: set[int] = set()
    for run in (text or "").replace(" ", "").split(","):
        if not run:
            continue
        first, _, last = run.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or len(first + last) > 12:
            raise PrunekitError(f"protect_layers takes layer numbers such as 0,1,29 or 0-2, not {text!r}.")
        start, stop = int(first), int(last or first)
        if stop < start or stop > 4096:
            raise PrunekitError(f"protect_layers {text!r}: a range runs from a lower layer to a higher one.")
        layers.update(range(start, stop + 1))
    return frozenset(layers)
